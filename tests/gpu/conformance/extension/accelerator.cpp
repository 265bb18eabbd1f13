// A pretended accelerator: the functions of torch's stable ABI that the bindings ask for a device
// and a stream, under the same names. It is linked with -Bsymbolic, so the bindings call these and
// not torch's. Events are recorded in order, for the tests.
#include "accelerator.h"

namespace {

std::string events;
void* stream = nullptr;
int status = 0;

}  // namespace

namespace pretended {

void record(const std::string& event) { events += event + '\n'; }

int launch(const char* kernel, void* on) {
  record(std::string(kernel) + " on " + std::to_string(reinterpret_cast<uintptr_t>(on)));
  return status;
}

}  // namespace pretended

extern "C" {

// For the tests: the events since the last call; the stream to hand out and the status of launches.
__attribute__((visibility("default"))) const char* pretended_events() {
  static std::string taken;
  taken.swap(events);
  events.clear();
  return taken.c_str();
}
__attribute__((visibility("default"))) void pretended_set(void* new_stream, int new_status) {
  stream = new_stream;
  status = new_status;
}

int32_t aoti_torch_create_device_guard(int32_t device, void** guard) {
  pretended::record("device " + std::to_string(device));
  *guard = &events;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) {
  pretended::record("device before");
  return 0;
}
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** current) {
  *current = stream;
  return 0;
}
}
