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

// Product, activation and product in one call. What they hand on lies in a workspace.
//
// The launches overlap (common/grid_dependency.cuh): the activation and the second product read before their wait what
// they may. The products trigger behind their waits, the activation at once. So when blocks of the activation or of the
// second product run, what came before the first product has ended: tokens, weights and scales are right.

#include "moe_experts.h"

#include "activations.h"
#include "check.h"
#include "common/types.h"
#include "group_gemm_arguments.h"

namespace w4afp8 {
namespace {

Tensor product(const Tensor& x, const Tensor& tokens, const Tensor* x_scale,
               const ProjectionArguments& projection, const ExpertsArguments& a,
               std::string_view out_dtype, int64_t token_padding, std::string_view activation,
               Outputs outputs, Start start) {
  return group_gemm(x, projection.weight, projection.weight_scale, tokens, projection.group_scale,
                    x_scale, projection.bias, projection.weight_format, projection.group_size,
                    token_padding, a.max_tokens, out_dtype, projection.accumulation, activation,
                    outputs, start);
}

}  // namespace

// Fewer outputs stay in L2 until the launch behind the product reads them, which costs less than tiles of pairs of
// sub-blocks do. The more so the fewer in_features there are, probably as a tile's activation takes as long with few
// (kernel-log.md, runs 190 to 192).
bool fuses_activation(int64_t rows, int64_t outputs, int64_t in_features) {
  const int64_t least_bytes = int64_t{in_features < 4096 ? 40 : 20} << 20;
  return outputs % kActivatedOutUnit == 0 && rows * outputs * kHalfBytes >= least_bytes;
}

int64_t num_experts(const ExpertsArguments& a) {
  check_rank(a.up_gate.weight_scale, "weight_scale", 2, "[experts, out_features]");
  return a.up_gate.weight_scale.dims()[0];
}

ExpertsLayout make_layout(const ExpertsArguments& a, const ExpertRows& rows,
                          WorkspaceLayout& workspace) {
  for (const Tensor* scale : {&a.up_gate.weight_scale, &a.down.weight_scale}) {
    check_rank(*scale, "weight_scale", 2, "[experts, out_features]");
  }
  const int64_t outputs = a.up_gate.weight_scale.dims()[1];
  const bool has_gate = is_gated(activation_of(a.activation, "activation"));
  const int64_t taken = has_gate ? outputs / 2 : outputs;  // by the second product
  // On the CPU it would need room for all outputs of the product beside the workspace.
  const bool fuses =
      rows.are_on_gpu && has_gate && fuses_activation(rows.expected, outputs, rows.in_features);
  ExpertsLayout layout{fuses};
  layout.activated_scale = workspace.add(rows.count * kWordBytes);
  layout.inner = workspace.add(rows.count * (fuses ? taken : outputs) * kHalfBytes);
  layout.activated = workspace.add(rows.count * taken);
  return layout;
}

Tensor run_experts(const Tensor& x, const Tensor& tokens, const Tensor* x_scale,
                   const ExpertsArguments& a, std::string_view out_dtype, int64_t token_padding,
                   const ExpertsLayout& layout, const Workspace& workspace, Outputs y,
                   Start start) {
  // The same bits whoever applies the activation.
  const std::string_view in_product = layout.fuses_activation ? a.activation : "none";
  const std::string_view behind_it = layout.fuses_activation ? "none" : a.activation;
  constexpr bool kStartsEarly = true, kConsumesRows = true;
  const Tensor inner = product(x, tokens, x_scale, a.up_gate, a, out_dtype, token_padding,
                               in_product, {workspace.at(layout.inner)}, start);
  const auto [activated, scale] =
      activation_quant(inner, tokens, behind_it, token_padding, a.hadamard_block_size,
                       {workspace.at(layout.activated), workspace.at(layout.activated_scale)},
                       kStartsEarly, kConsumesRows);
  return product(activated, tokens, &scale, a.down, a, out_dtype, token_padding, "none", y,
                 Start::kEarly);
}

Tensor moe_experts(const Tensor& x, const Tensor& tokens, const Tensor* x_scale,
                   const ExpertsArguments& arguments, std::string_view out_dtype,
                   int64_t token_padding) {
  check_tensor(x, "x");
  check_range(token_padding, "token_padding", 0, INT32_MAX);
  check_activation_rank(x, "x", token_padding);
  const TokenLayout rows{nullptr, false, false, token_padding, rows_of(x), num_experts(arguments)};
  const int64_t expected = rows.expected_rows(arguments.max_tokens);
  const int64_t in_features = x.dims()[x.dims().size() - 1];
  WorkspaceLayout regions;
  const ExpertsLayout layout =
      make_layout(arguments, {rows.num_rows, expected, in_features, on_gpu(x)}, regions);
  // What runs before the first product is not known.
  return run_experts(x, tokens, x_scale, arguments, out_dtype, token_padding, layout,
                     Workspace(regions, x.place()), {}, Start::kBehind);
}

}  // namespace w4afp8
