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

// What the registered operators (PD_BUILD_OP) share. Paddle's executor aborts the process on any
// exception but its own.
#pragma once

#include <exception>
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

// Size of a dimension that may be unknown (-1) while a program is traced.
inline int64_t scaled(int64_t size, int64_t times) { return size < 0 ? -1 : size * times; }
inline int64_t rounded(int64_t size, int64_t unit) { return size < 0 ? -1 : round_up(size, unit); }

// A shape of the rank that the operator's arguments must have; sizes are checked when it runs.
inline void check_traced_rank(const Shape& shape, const char* name, size_t rank,
                              const char* meaning) {
  if (shape.size() == rank) return;
  fail(name, std::string("the shape ") + meaning,
       std::to_string(shape.size()) + " dimensions");
}

}  // namespace w4afp8
