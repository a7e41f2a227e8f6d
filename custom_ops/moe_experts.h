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

// The experts of a mixture-of-experts layer on rows that are sorted: product, activation, product.
#pragma once

#include "ops.h"
#include "workspace.h"

namespace w4afp8 {

// The rows that the experts have.
struct ExpertRows {
  int64_t count;
  int64_t expected;  // that probably hold tokens
  int64_t in_features;
  bool are_on_gpu;
};

// What the operators hand on, and where in a workspace it is.
struct ExpertsLayout {
  bool fuses_activation;  // the first product applies it
  int64_t inner, activated, activated_scale;
};

// Adds the regions to a workspace. Checks only what they depend on; the operators check the rest.
ExpertsLayout make_layout(const ExpertsArguments& arguments, const ExpertRows& rows,
                          WorkspaceLayout& workspace);

// Whose weights there are.
int64_t num_experts(const ExpertsArguments& arguments);

// The three launches overlap: see moe_experts.cc. `y`: where the output is, which may be where x was.
// `start`: of the first one (GroupGemmParams).
Tensor run_experts(const Tensor& x, const Tensor& tokens, const Tensor* x_scale,
                   const ExpertsArguments& arguments, std::string_view out_dtype,
                   int64_t token_padding, const ExpertsLayout& layout, const Workspace& workspace,
                   Outputs y, Start start);

}  // namespace w4afp8
