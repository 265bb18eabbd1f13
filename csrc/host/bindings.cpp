// The Python module wavalign_fast._host: work on plain numbers that needs no tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "host/interleave.h"
#include "host/packing.h"

namespace py = pybind11;
namespace host = wavalign::host;

namespace {

// A million new lists would start the garbage collector over and over, and none is garbage.
struct WithoutCollector {
  const bool was_on = PyGC_Disable();
  ~WithoutCollector() {
    if (was_on) PyGC_Enable();
  }
};

py::list as_lists(const host::Groups& groups) {
  const WithoutCollector without_collector;
  py::list lists(groups.ends.size());
  int64_t row = 0;
  for (size_t group = 0; group < groups.ends.size(); ++group) {
    py::list members(groups.ends[group] - row);
    for (size_t n = 0; row < groups.ends[group]; ++n) members[n] = groups.rows[row++];
    lists[group] = std::move(members);
  }
  return lists;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Compiled twins of functions in wavalign_fast.data.";
  module.def(
      "interleave",
      [](const py::object& text, const py::object& codes, const std::vector<Py_ssize_t>& text_sizes,
         const std::vector<Py_ssize_t>& speech_sizes, const py::object& begin,
         const py::object& end) {
        PyObject* mixed = host::interleave(text.ptr(), codes.ptr(), text_sizes, speech_sizes,
                                           begin.ptr(), end.ptr());
        if (mixed == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::list>(mixed);
      },
      py::arg("text"), py::arg("codes"), py::arg("text_sizes"), py::arg("speech_sizes"),
      py::arg("begin"), py::arg("end"));
  module.def(
      "first_fit_decreasing",
      [](const std::vector<int64_t>& lengths, int64_t budget) {
        return as_lists(host::first_fit_decreasing(lengths, budget));
      },
      py::arg("lengths"), py::arg("budget"));
  module.def("build_info", [] {
    py::dict info;
    info["python"] = PY_VERSION;
    return info;
  });
}
