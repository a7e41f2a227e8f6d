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

// The `tokens` argument: which rows of the activations belong to which expert.
#pragma once

#include "check.h"
#include "common/token_layout.h"

namespace w4afp8 {

// Checks what does not depend on the number of experts.
void check_tokens(const Tensor& tokens, const Tensor& first, int64_t token_padding);

// Activations are [num_tokens, features], or [experts, token_padding, features].
void check_activation_rank(const Tensor& x, const char* name, int64_t token_padding);

// Rows of activations: all dimensions but the last.
inline int64_t rows_of(const Tensor& x) {
  const common::DDim& dims = x.dims();
  return dims.size() == 2 ? dims[0] : dims[0] * dims[1];
}

// The shape of `x` with another last dimension.
std::vector<int64_t> with_features(const Tensor& x, int64_t features);
// The shape of `x` without its last dimension.
std::vector<int64_t> without_features(const Tensor& x);

}  // namespace w4afp8
