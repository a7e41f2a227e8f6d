// Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

#include "check.h"

#include <cinttypes>

namespace w4afp8 {
namespace {

constexpr uintptr_t kAlignment = 16;

std::string quoted(std::string_view value) { return "'" + std::string(value) + "'"; }

std::string names_of(std::initializer_list<PaddleType> types) {
  std::string text;
  for (const PaddleType type : types) {
    if (!text.empty()) text += " or ";
    text += phi::DataTypeToString(type);
  }
  return text;
}

template <typename Dims>
std::string join(const Dims& dims, int64_t rank) {
  std::string text = "[";
  for (int64_t i = 0; i < rank; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(dims[i]);
  }
  return text + "]";
}

void check_memory(const Tensor& t, const char* name) {
  if (!t.defined()) fail(name, "a tensor", "None");
  if (!t.is_dense_tensor()) fail(name, "a dense tensor", "another kind of tensor");
  if (!t.has_allocation() && t.numel() > 0) fail(name, "a tensor with data", "one without");
}

[[noreturn]] void fail_strides(const Tensor& t, const char* name, const char* expected) {
  fail(name, expected,
       "strides " + to_string(t.strides()) + " for the shape " + to_string(t.dims()) +
           "; call contiguous()");
}

// As Tensor::is_contiguous, which makes the strides of a shape first and takes 3.7 times as long (kernel-log.md,
// run 133).
bool is_contiguous(const Tensor& t) {
  const common::DDim &dims = t.dims(), &strides = t.strides();
  if (strides.size() != dims.size()) return false;
  int64_t stride = 1;
  for (int i = dims.size() - 1; i >= 0; --i) {
    if (strides[i] != stride) return false;
    stride *= dims[i];
  }
  return true;
}

void check_contiguous(const Tensor& t, const char* name) {
  // Nothing reads a slice or a reshaped tensor without elements.
  if (!is_contiguous(t) && t.numel() > 0) fail_strides(t, name, "a contiguous tensor");
}

void check_place(const Tensor& t, const char* name) {
  if (t.is_cpu()) return;
#ifdef W4AFP8_WITH_CUDA
  if (on_gpu(t)) return;
  fail(name, "a tensor on the CPU or on a GPU", "one on " + t.place().DebugString());
#else
  fail(name, "a tensor on the CPU",
       "one on " + t.place().DebugString() +
           "; this build has no CUDA kernels: run 'python3 setup_ops.py build_ext --inplace' where "
           "nvcc 12.4 or newer is found");
#endif
}

}  // namespace

void fail(const char* name, const std::string& expected, const std::string& got) {
  throw ArgumentError(std::string(name) + ": expected " + expected + ", got " + got);
}

std::string to_string(std::initializer_list<int64_t> shape) {
  return join(shape.begin(), static_cast<int64_t>(shape.size()));
}

std::string to_string(const common::DDim& shape) { return join(shape, shape.size()); }

void check_tensor(const Tensor& t, const char* name) {
  check_memory(t, name);
  check_contiguous(t, name);
  check_place(t, name);
}

void check_view(const Tensor& t, const char* name) {
  check_memory(t, name);
  const int last = t.dims().size() - 1;
  // Of no elements, or of one, strides may be anything.
  if (t.numel() > 0 && last >= 0 && t.dims()[last] > 1 && t.strides()[last] != 1) {
    fail_strides(t, name, "a contiguous tensor, or a view whose last dimension is contiguous");
  }
  check_place(t, name);
}

void check_tensor(const Tensor& t, const char* name, const Tensor& first) {
  check_memory(t, name);
  check_contiguous(t, name);
  if (t.place() == first.place()) return;
  fail(name, "a tensor on " + first.place().DebugString() + " as the first one",
       "one on " + t.place().DebugString());
}

void check_dtype(const Tensor& t, const char* name, std::initializer_list<PaddleType> allowed) {
  const PaddleType dtype = t.dtype();
  for (const PaddleType type : allowed) {
    if (dtype == type) return;
  }
  fail(name, "dtype " + names_of(allowed), phi::DataTypeToString(dtype));
}

void check_rank(const Tensor& t, const char* name, int rank, const char* meaning) {
  if (t.dims().size() == rank) return;
  fail(name, std::string("the shape ") + meaning, to_string(t.dims()));
}

void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  const common::DDim& dims = t.dims();
  bool same = dims.size() == static_cast<int>(shape.size());
  for (int i = 0; same && i < dims.size(); ++i) same = dims[i] == shape.begin()[i];
  if (!same) fail(name, "the shape " + to_string(shape), to_string(dims));
}

void check_aligned(const void* data, const char* name) {
  const auto offset = reinterpret_cast<uintptr_t>(data) % kAlignment;
  if (offset == 0) return;
  fail(name, "data aligned to 16 bytes",
       "an address " + std::to_string(offset) + " bytes past that; call clone()");
}

void check_range(int64_t value, const char* name, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  std::string range = "at least " + std::to_string(least);
  if (most != INT64_MAX) range += " and at most " + std::to_string(most);
  fail(name, range, std::to_string(value));
}

void check_multiple(int64_t value, const char* name, int64_t unit) {
  if (value > 0 && value % unit == 0) return;
  fail(name, "a positive multiple of " + std::to_string(unit), std::to_string(value));
}

WeightFormat weight_format_of(std::string_view value, const char* name) {
  if (value == "int4") return WeightFormat::kInt4;
  if (value == "mxfp4") return WeightFormat::kMxfp4;
  fail(name, "'int4' or 'mxfp4'", quoted(value));
}

Accumulation accumulation_of(std::string_view value, const char* name) {
  if (value == "default") return Accumulation::kDefault;
  if (value == "half") return Accumulation::kHalf;
  if (value == "float32") return Accumulation::kFloat32;
  fail(name, "'default', 'half' or 'float32'", quoted(value));
}

Activation activation_of(std::string_view value, const char* name) {
  if (value == "none") return Activation::kNone;
  if (value == "swiglu") return Activation::kSwiglu;
  if (value == "swiglu_oai") return Activation::kSwigluOai;
  if (value == "gelu") return Activation::kGelu;
  fail(name, "'none', 'swiglu', 'swiglu_oai' or 'gelu'", quoted(value));
}

Activation gated_activation_of(std::string_view value, const char* name) {
  if (value == "none") return Activation::kNone;
  if (value == "swiglu") return Activation::kSwiglu;
  if (value == "swiglu_oai") return Activation::kSwigluOai;
  fail(name, "'none', 'swiglu' or 'swiglu_oai' (activation_quant applies the others)",
       quoted(value));
}

RouteScore score_of(std::string_view value, const char* name) {
  if (value == "softmax") return RouteScore::kSoftmax;
  if (value == "sigmoid") return RouteScore::kSigmoid;
  fail(name, "'softmax' or 'sigmoid'", quoted(value));
}

PaddleType half_type_of(std::string_view value, const char* name) {
  if (value == "bfloat16") return PaddleType::BFLOAT16;
  if (value == "float16") return PaddleType::FLOAT16;
  fail(name, "'bfloat16' or 'float16'", quoted(value));
}

DataType data_type_of(const Tensor& t) {
  switch (t.dtype()) {
    case PaddleType::BFLOAT16: return DataType::kBFloat16;
    case PaddleType::FLOAT16: return DataType::kFloat16;
    default: return DataType::kFloat32;
  }
}

}  // namespace w4afp8
