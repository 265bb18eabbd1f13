#include "host/interleave.h"

#include <algorithm>

namespace wavalign::host {

namespace {

using Sizes = std::vector<Py_ssize_t>;

// The size of chunk k of a stream of which `left` ids are left.
Py_ssize_t chunk(const Sizes& sizes, size_t k, Py_ssize_t left) {
  return std::min(sizes[std::min(k, sizes.size() - 1)], left);
}

// How many chunks are mixed: as many as the shorter stream fills.
size_t shared_chunks(Py_ssize_t text, Py_ssize_t codes, const Sizes& text_sizes,
                     const Sizes& speech_sizes) {
  size_t chunks = 0;
  while (text > 0 && codes > 0) {
    text -= chunk(text_sizes, chunks, text);
    codes -= chunk(speech_sizes, chunks, codes);
    ++chunks;
  }
  return chunks;
}

// The items of a list or tuple that are not yet moved.
struct Stream {
  PyObject** next;
  Py_ssize_t left;

  explicit Stream(PyObject* fast)
      : next(PySequence_Fast_ITEMS(fast)), left(PySequence_Fast_GET_SIZE(fast)) {}
};

// A list that is filled from its start.
struct Mixed {
  PyObject* list;
  Py_ssize_t length = 0;

  void append(PyObject* id) {
    Py_INCREF(id);
    PyList_SET_ITEM(list, length++, id);
  }

  void move(Stream& ids, Py_ssize_t count) {
    for (Py_ssize_t moved = 0; moved < count; ++moved) append(*ids.next++);
    ids.left -= count;
  }
};

PyObject* mix(Stream text, Stream codes, const Sizes& text_sizes, const Sizes& speech_sizes,
              PyObject* begin, PyObject* end) {
  const bool bounded = begin != Py_None;
  const size_t chunks = shared_chunks(text.left, codes.left, text_sizes, speech_sizes);
  // Speech without text is one chunk, too.
  const size_t spoken = chunks == 0 && codes.left > 0 ? 1 : chunks;
  const auto bounds = static_cast<Py_ssize_t>(bounded ? 2 * spoken : 0);
  Mixed mixed{PyList_New(text.left + codes.left + bounds)};
  if (mixed.list == nullptr) return nullptr;
  const auto speak = [&](Py_ssize_t count) {
    if (bounded && count > 0) mixed.append(begin);
    mixed.move(codes, count);
    if (bounded && count > 0) mixed.append(end);
  };
  for (size_t k = 0; k + 1 < chunks; ++k) {
    mixed.move(text, chunk(text_sizes, k, text.left));
    speak(chunk(speech_sizes, k, codes.left));
  }
  // The last chunk takes what is left; without bounds, text that is left follows the speech.
  const bool text_follows = !bounded && chunks > 0;
  mixed.move(text, text_follows ? chunk(text_sizes, chunks - 1, text.left) : text.left);
  speak(codes.left);
  mixed.move(text, text.left);
  return mixed.list;
}

}  // namespace

PyObject* interleave(PyObject* text, PyObject* codes, const Sizes& text_sizes,
                     const Sizes& speech_sizes, PyObject* begin, PyObject* end) {
  PyObject* words = PySequence_Fast(text, "text: wanted a sequence of ids");
  PyObject* speech = PySequence_Fast(codes, "codes: wanted a sequence of ids");
  PyObject* mixed = nullptr;
  if (words != nullptr && speech != nullptr) {
    mixed = mix(Stream(words), Stream(speech), text_sizes, speech_sizes, begin, end);
  }
  Py_XDECREF(words);
  Py_XDECREF(speech);
  return mixed;
}

}  // namespace wavalign::host
