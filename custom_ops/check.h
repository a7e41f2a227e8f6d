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

// Argument checks. Each costs comparisons only where the argument is right; where it is wrong, it
// throws ArgumentError with "name: expected ..., got ...".
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

#include "common/types.h"
#include "paddle_api.h"

namespace w4afp8 {

using paddle::Tensor;
using PaddleType = phi::DataType;

// A wrong argument. Both routes make it a ValueError of Python.
class ArgumentError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

[[noreturn]] void fail(const char* name, const std::string& expected, const std::string& got);

// "[2, 3]"
std::string to_string(std::initializer_list<int64_t> shape);
std::string to_string(const common::DDim& shape);

inline bool on_gpu(const Tensor& t) { return t.is_gpu() || t.is_custom_device(); }

// A dense, contiguous tensor with data, in memory that this build has kernels for.
void check_tensor(const Tensor& t, const char* name);
// The same, but only the last dimension need be contiguous.
void check_view(const Tensor& t, const char* name);
// A dense, contiguous tensor with data, where `first` is.
void check_tensor(const Tensor& t, const char* name, const Tensor& first);

void check_dtype(const Tensor& t, const char* name, std::initializer_list<PaddleType> allowed);
void check_rank(const Tensor& t, const char* name, int rank, const char* meaning);
void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape);
// Kernels read and write 16 bytes at a time. `data`: of a tensor that they read; asking it again for its address
// takes as long as all its other checks.
void check_aligned(const void* data, const char* name);

void check_range(int64_t value, const char* name, int64_t least, int64_t most);
void check_multiple(int64_t value, const char* name, int64_t unit);

WeightFormat weight_format_of(std::string_view value, const char* name);
Accumulation accumulation_of(std::string_view value, const char* name);
Activation activation_of(std::string_view value, const char* name);
// One with a gate, or none.
Activation gated_activation_of(std::string_view value, const char* name);
RouteScore score_of(std::string_view value, const char* name);
// "bfloat16" or "float16".
PaddleType half_type_of(std::string_view value, const char* name);
// Of a tensor whose dtype was checked.
DataType data_type_of(const Tensor& t);

}  // namespace w4afp8
