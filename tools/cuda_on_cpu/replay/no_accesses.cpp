#include "replay/accesses.h"

void watch(const char*, const void*, size_t) {}
Traffic traffic_of(const void*) { return {}; }
