// Mixes the ids of text and speech, as wavalign_fast/data/interleave.py defines it.
#pragma once

#include <Python.h>

#include <vector>

namespace wavalign::host {

// Returns a new list of the same objects that the sequences `text` and `codes` hold, or nullptr
// with a Python error. `begin` and `end` are both None or both ids. The last size repeats; sizes
// are at least 1 and do not count `begin` and `end`. Works without pybind11, whose headers take the
// compiler longer than all the rest.
PyObject* interleave(PyObject* text, PyObject* codes, const std::vector<Py_ssize_t>& text_sizes,
                     const std::vector<Py_ssize_t>& speech_sizes, PyObject* begin, PyObject* end);

}  // namespace wavalign::host
