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

// The arguments of the grouped GEMM, checked and turned into what the kernels take.
#pragma once

#include "check.h"
#include "grouped_gemm/params.h"

namespace w4afp8 {

// A launch with an activation has out_features of a multiple of this: sub-blocks of gate and of up.
constexpr int64_t kActivatedOutUnit = 2 * kSubBlockOut;

// As they came from Python; an absent tensor is nullptr.
struct GroupGemmArguments {
  const Tensor& x;
  const Tensor& weight;
  const Tensor& weight_scale;
  const Tensor& tokens;
  const Tensor* group_scale;
  const Tensor* x_scale;
  const Tensor* bias;
  std::string_view weight_format;
  int64_t group_size;
  int64_t token_padding;
  int64_t max_tokens;
  PaddleType out_type;
  std::string_view accumulation;
  std::string_view activation;
};

// Everything but `out`.
GroupGemmParams read_arguments(const GroupGemmArguments& arguments);

}  // namespace w4afp8
