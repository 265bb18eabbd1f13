#pragma once

#include <cstdint>
#include <string>

namespace make_believe {

void note(const std::string& event);

// Notes a launch, and returns the status that the test has set.
int launch(const char* kernel, void* stream);

}  // namespace make_believe
