#include "replay/entries.h"

#include "wrong_kernels.h"

namespace {

int run(void* params) { return wrong::run(*static_cast<wrong::Params*>(params), nullptr); }

}  // namespace

const Entry entries[] = {{"wrong", sizeof(wrong::Params), run}};
const size_t entry_count = 1;
