// A make-believe accelerator: the functions of torch's stable ABI that the bindings ask for a
// device and a stream, under the same names. Linked with -Bsymbolic, so the bindings meet these and
// not torch's. What happens is written down for the tests, in order.
#include "accelerator.h"

namespace {

std::string events;
void* stream = nullptr;
int status = 0;

}  // namespace

namespace make_believe {

void note(const std::string& event) { events += event + '\n'; }

int launch(const char* kernel, void* on) {
  note(std::string(kernel) + " on " + std::to_string(reinterpret_cast<uintptr_t>(on)));
  return status;
}

}  // namespace make_believe

extern "C" {

// For the tests: what happened since the last call; the stream to hand out and what launches
// return.
__attribute__((visibility("default"))) const char* make_believe_events() {
  static std::string taken;
  taken.swap(events);
  events.clear();
  return taken.c_str();
}
__attribute__((visibility("default"))) void make_believe_set(void* new_stream, int new_status) {
  stream = new_stream;
  status = new_status;
}

int32_t aoti_torch_create_device_guard(int32_t device, void** guard) {
  make_believe::note("device " + std::to_string(device));
  *guard = &events;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) {
  make_believe::note("device before");
  return 0;
}
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** current) {
  *current = stream;
  return 0;
}
}
