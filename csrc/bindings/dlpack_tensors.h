// torch's tensors, read in place through DLPack's table of C functions (DLPack 1.3): no
// attribute is looked up, and nothing of torch is linked.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../cascade_topk.h"

namespace cpr {

// A tensor as the table describes it; shape and strides stay the tensor's, strides count elements.
struct DlTensor {
  void* data;
  int32_t device_type, device_index;
  int32_t dims;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
};

// torch.Tensor.__dlpack_c_exchange_api__
struct DlTable {
  uint32_t major, minor;
  const void* older;
  void *allocate, *give, *take;
  int (*read)(void* tensor, DlTensor* out);  // 0, or a Python error is set
  void* current_stream;
};

enum class DlCode : uint8_t { integer = 0, floating = 2, bfloat = 4 };

class TorchTensors {
 public:
  // False where this torch has no such table; then nothing can be read.
  bool connect(pybind11::handle tensor_type) {
    PyObject* capsule = PyObject_GetAttrString(tensor_type.ptr(), "__dlpack_c_exchange_api__");
    const void* found = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    Py_XDECREF(capsule);
    PyErr_Clear();
    const DlTable* const table = static_cast<const DlTable*>(found);
    if (!table || table->major != 1 || !table->read) return false;
    tensor_type_ = reinterpret_cast<PyTypeObject*>(tensor_type.inc_ref().ptr());
    is_neg_ = PyUnicode_InternFromString("is_neg");
    storage_offset_ = PyUnicode_InternFromString("storage_offset");
    table_ = table;
    return true;
  }

  // A dense tensor in CPU memory, of torch's own type and with nothing left to do to its elements. False for
  // all else, without a Python error.
  bool read(PyObject* object, DlTensor& tensor) const {
    constexpr int32_t CPU = 1;
    if (!table_ || Py_TYPE(object) != tensor_type_) return false;
    const bool described = table_->read(object, &tensor) == 0;
    if (!described) PyErr_Clear();  // no dense memory: sparse, quantised, of another device
    if (!described || tensor.device_type != CPU || tensor.lanes != 1 || tensor.byte_offset != 0) return false;
    int64_t elements = 1;
    for (int i = 0; i < tensor.dims; ++i) elements *= tensor.shape[i];
    if (elements > 0 && !has_memory(object, tensor)) return false;
    PyObject* const negated = PyObject_CallMethodNoArgs(object, is_neg_);
    Py_XDECREF(negated);  // True and False outlive it
    if (!negated) PyErr_Clear();
    return negated == Py_False;
  }

 private:
  // Null: zeros or a wrapper without memory. A freed storage begins at null, so its tensors lie at their
  // offset; addresses that low are rare enough to be looked at.
  bool has_memory(PyObject* object, const DlTensor& tensor) const {
    constexpr uintptr_t FREED_BELOW = uintptr_t{1} << 40;
    const uintptr_t address = reinterpret_cast<uintptr_t>(tensor.data);
    if (address >= FREED_BELOW) return true;
    PyObject* const offset = PyObject_CallMethodNoArgs(object, storage_offset_);
    const int64_t elements = offset ? PyLong_AsLongLong(offset) : -1;
    Py_XDECREF(offset);
    if (PyErr_Occurred()) PyErr_Clear();
    return elements >= 0 && address != static_cast<uintptr_t>(elements) * (tensor.bits / 8u);
  }

  const DlTable* table_ = nullptr;
  PyTypeObject* tensor_type_ = nullptr;
  PyObject *is_neg_ = nullptr, *storage_offset_ = nullptr;
};

inline bool holds(const DlTensor& tensor, DlCode code, int bits) {
  return tensor.code == static_cast<uint8_t>(code) && tensor.bits == bits;
}

// The dtype of features; false for others.
inline bool feature_dtype(const DlTensor& tensor, DType& dtype) {
  if (holds(tensor, DlCode::floating, 32))
    dtype = DType::float32;
  else if (holds(tensor, DlCode::bfloat, 16))
    dtype = DType::bfloat16;
  else if (holds(tensor, DlCode::floating, 16))
    dtype = DType::float16;
  else
    return false;
  return true;
}

}  // namespace cpr
