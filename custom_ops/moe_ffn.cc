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

// A mixture-of-experts layer in one call. What one operator hands to the next lies in a single
// workspace from Paddle's allocator, which gets it back at once and so has it for the next layer. The
// second product's rows lie over the tokens, which the first product kept in L2: their lines are used
// again instead of staying there, dead.

#include <algorithm>

#include "check.h"
#include "common/types.h"
#include "group_gemm_arguments.h"
#include "moe_route/params.h"
#include "ops.h"

namespace w4afp8 {
namespace {

constexpr int64_t kAlignment = 1024;  // bytes; the kernels want 16, tensor maps 128
constexpr int64_t kWordBytes = 4, kHalfBytes = 2;

// Bytes of what the operators hand on, and where in the workspace each begins.
class WorkspaceLayout {
 public:
  // `inner`: what the first product gives of a row; `activated_features`: what the second takes.
  WorkspaceLayout(int64_t slots, int64_t hidden, int64_t inner, int64_t activated_features,
                  int64_t experts) {
    topk_weights = add(slots * kWordBytes);
    topk_ids = add(slots * kWordBytes);
    row_index = add(slots * kWordBytes);
    tokens = add((experts + 1) * kWordBytes);
    scale = add(slots * kWordBytes);
    activated_scale = add(slots * kWordBytes);
    y = add(slots * hidden * kHalfBytes);
    permuted = y;  // which the first product has read
    inner_rows = add(slots * inner * kHalfBytes);
    activated = add(slots * activated_features);
  }

  int64_t bytes() const { return end_; }

  int64_t topk_weights, topk_ids, row_index, tokens, scale, activated_scale;
  int64_t permuted, activated, inner_rows, y;

 private:
  int64_t add(int64_t bytes) {
    const int64_t begin = end_;
    end_ += round_up(std::max<int64_t>(bytes, 1), kAlignment);
    return begin;
  }

  int64_t end_ = 0;
};

// On the CPU it would need room for all outputs of the product beside the workspace.
bool is_fused(const MoeFfnArguments& a) {
  const int64_t experts = a.up_gate.weight_scale.dims()[0], routed = a.logits.dims()[1];
  const int64_t rows = a.x.dims()[0] * a.topk * experts / std::max<int64_t>(routed, 1);  // probably
  return on_gpu(a.x) && is_gated(activation_of(a.activation, "activation")) &&
         fuses_activation(rows, a.up_gate.weight_scale.dims()[1]);
}

// What the layout depends on; the operators check the rest.
WorkspaceLayout layout_of(const MoeFfnArguments& a) {
  check_tensor(a.x, "x");
  check_tensor(a.logits, "logits");
  check_rank(a.x, "x", 2, "[tokens, hidden]");
  check_rank(a.logits, "logits", 2, "[tokens, experts]");
  for (const Tensor* scale : {&a.up_gate.weight_scale, &a.down.weight_scale}) {
    check_rank(*scale, "weight_scale", 2, "[experts, out_features]");
  }
  const int64_t tokens = a.x.dims()[0], outputs = a.up_gate.weight_scale.dims()[1];
  check_range(a.topk, "topk", 1, kMaxTopk);
  check_range(tokens, "tokens of x", 0, INT32_MAX / a.topk);
  const bool has_gate = is_gated(activation_of(a.activation, "activation"));
  const int64_t activated = has_gate ? outputs / 2 : outputs;
  return {tokens * a.topk, std::max(a.x.dims()[1], a.down.weight_scale.dims()[1]),
          is_fused(a) ? activated : outputs, activated, a.up_gate.weight_scale.dims()[0]};
}

// The launches overlap (common/grid_dependency.cuh): most read before their wait what they may. The router, the dispatch
// and the products trigger behind their waits, the activation at once. So when blocks run
// - of the first product, the router has ended: the prefix sums are the -1 that it writes or, once the dispatch has
//   written them, right; weights and scales are older;
// - of the activation or the second product, the dispatch has ended: the prefix sums are right;
// - of the combine, the activation has ended: the routing can be read; the output is new, and nobody uses it.
constexpr bool kStartsEarly = true;

Tensor product(const MoeFfnArguments& a, const ProjectionArguments& projection, const Tensor& x,
               const Tensor& x_scale, const Tensor& tokens, std::string_view activation,
               void* out) {
  return group_gemm(x, projection.weight, projection.weight_scale, tokens, projection.group_scale,
                    &x_scale, projection.bias, a.weight_format, projection.group_size, 0,
                    a.max_tokens, a.x.dtype() == PaddleType::FLOAT16 ? "float16" : "bfloat16",
                    projection.accumulation, activation, {out}, kStartsEarly);
}

}  // namespace

// Fewer outputs stay in L2 until the launch behind the product reads them, which costs less than tiles of
// pairs of sub-blocks do (performance.md).
bool fuses_activation(int64_t rows, int64_t outputs) {
  constexpr int64_t kLeastBytes = 20 << 20;
  return outputs % kActivatedOutUnit == 0 && rows * outputs * kHalfBytes >= kLeastBytes;
}

Tensor moe_ffn(const MoeFfnArguments& a) {
  const WorkspaceLayout layout = layout_of(a);
  Tensor workspace = paddle::empty({layout.bytes()}, PaddleType::UINT8, a.x.place());
  const auto at = [&](int64_t begin) -> void* { return workspace.data<uint8_t>() + begin; };

  const int64_t experts = a.up_gate.weight_scale.dims()[0];
  const auto [weights, ids] =
      moe_route(a.logits, a.correction_bias, a.topk, a.score, a.norm_topk_prob,
                a.routed_scaling_factor, a.n_group, a.topk_group,
                {at(layout.topk_weights), at(layout.topk_ids)}, {at(layout.tokens), experts + 1});
  const auto [permuted, scale, tokens, row_index] = moe_dispatch(
      a.x, ids, experts, 0, a.first_expert,
      {at(layout.permuted), at(layout.scale), at(layout.tokens), at(layout.row_index)});
  // The same bits whoever applies the activation.
  const std::string_view in_product = is_fused(a) ? a.activation : "none";
  const std::string_view behind_it = is_fused(a) ? "none" : a.activation;
  const Tensor inner =
      product(a, a.up_gate, permuted, scale, tokens, in_product, at(layout.inner_rows));
  constexpr bool kConsumesRows = true;
  const auto [activated, activated_scale] = activation_quant(
      inner, tokens, behind_it, 0, a.hadamard_block_size,
      {at(layout.activated), at(layout.activated_scale)}, kStartsEarly, kConsumesRows);
  const Tensor y = product(a, a.down, activated, activated_scale, tokens, "none", at(layout.y));
  return moe_combine(y, weights, row_index, a.shared_output, kStartsEarly);
}

}  // namespace w4afp8
