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

// What the registered operators (PD_BUILD_OP) share. From a kernel Paddle aborts the process on any
// exception but its own.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "check.h"

namespace w4afp8 {

using Shape = std::vector<int64_t>;
using OptionalTensor = paddle::optional<Tensor>;
using OptionalShape = paddle::optional<Shape>;
using OptionalType = paddle::optional<PaddleType>;

inline const Tensor* pointer_to(const OptionalTensor& t) { return t ? &*t : nullptr; }

// Calls `body`; its exceptions become Paddle's.
template <typename Body>
auto registered(Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const ArgumentError& e) {
    PADDLE_THROW(common::errors::InvalidArgument("%s", e.what()));
  } catch (const common::enforce::EnforceNotMet&) {
    throw;
  } catch (const std::exception& e) {
    PADDLE_THROW(common::errors::Unavailable("%s", e.what()));
  }
}

template <size_t kCount>
std::vector<Tensor> to_vector(const std::array<Tensor, kCount>& tensors) {
  return {tensors.begin(), tensors.end()};
}

// For InferShape and InferDtype, which see arguments that nobody has checked, with -1 for a size
// that is unknown while a program is traced. Paddle aborts the process where they throw, so they
// answer nonsense with -1; the kernel refuses it when the program runs.
inline int64_t size_at(const Shape& shape, size_t axis) {
  return axis < shape.size() ? shape[axis] : -1;
}
// -1 too where a result would be beyond every real size: their sums and products stay in 64 bits.
inline int64_t known_size(int64_t size) { return size < 0 || size > INT32_MAX ? -1 : size; }
inline int64_t times(int64_t a, int64_t b) {
  return known_size(a) < 0 || known_size(b) < 0 ? -1 : a * b;
}
inline int64_t halved(int64_t size) { return size < 0 ? -1 : size / 2; }
inline int64_t rounded(int64_t size, int64_t unit) {
  return known_size(size) < 0 ? -1 : round_up(size, unit);
}
inline int64_t one_more(int64_t size) { return known_size(size) < 0 ? -1 : size + 1; }

// Features that are left of `size` by an activation of that name.
inline int64_t activated(const std::string& activation, int64_t size) {
  return activation == "swiglu" || activation == "swiglu_oai" ? halved(size) : size;
}

// `shape` with another last dimension.
inline Shape with_last(Shape shape, int64_t size) {
  if (!shape.empty()) shape.back() = size;
  return shape;
}
// `shape` without its last dimension.
inline Shape without_last(Shape shape) {
  if (!shape.empty()) shape.pop_back();
  return shape;
}

}  // namespace w4afp8
