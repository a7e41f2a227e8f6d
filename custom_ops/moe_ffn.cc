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
// workspace. The second product's rows lie over the tokens, which the first product kept in L2: their lines are
// used again instead of staying there, dead.
//
// The launches overlap, those of the experts as moe_experts.cc says. The router and the dispatch trigger behind their
// waits. So when blocks run
// - of the first product, the router has ended: the prefix sums are the -1 that it writes or, once the dispatch has
//   written them, right; weights and scales are older;
// - of the activation or the second product, the dispatch has ended: the prefix sums are right;
// - of the combine, the activation has ended: the routing can be read; the output is new, and nobody uses it.

#include <algorithm>

#include "check.h"
#include "common/types.h"
#include "moe_experts.h"
#include "moe_route/params.h"
#include "ops.h"
#include "workspace.h"

namespace w4afp8 {
namespace {

// What the operators hand on, and where in the workspace it is.
struct MoeFfnLayout {
  WorkspaceLayout workspace;
  int64_t topk_weights, topk_ids, row_index, tokens, scale;
  int64_t permuted, y;  // one behind the other in the same place
  ExpertsLayout experts;
};

// Checks what the layout depends on; the operators check the rest.
MoeFfnLayout layout_of(const MoeFfnArguments& a) {
  check_tensor(a.x, "x");
  check_tensor(a.logits, "logits");
  check_rank(a.x, "x", 2, "[tokens, hidden]");
  check_rank(a.logits, "logits", 2, "[tokens, experts]");
  const int64_t tokens = a.x.dims()[0], hidden = a.x.dims()[1];
  check_range(a.topk, "topk", 1, kMaxTopk);
  check_range(tokens, "tokens of x", 0, INT32_MAX / a.topk);
  const int64_t slots = tokens * a.topk, routed = a.logits.dims()[1];
  const int64_t experts = num_experts(a.experts);
  const int64_t expected = slots * experts / std::max<int64_t>(routed, 1);

  MoeFfnLayout layout;
  WorkspaceLayout& workspace = layout.workspace;
  layout.topk_weights = workspace.add(slots * kWordBytes);
  layout.topk_ids = workspace.add(slots * kWordBytes);
  layout.row_index = workspace.add(slots * kWordBytes);
  layout.tokens = workspace.add((experts + 1) * kWordBytes);
  layout.scale = workspace.add(slots * kWordBytes);
  layout.experts = make_layout(a.experts, {slots, expected, hidden, on_gpu(a.x)}, workspace);
  const int64_t widest = std::max(hidden, a.experts.down.weight_scale.dims()[1]);
  layout.permuted = layout.y = workspace.add(slots * widest * kHalfBytes);
  return layout;
}

}  // namespace

Tensor moe_ffn(const MoeFfnArguments& a) {
  const MoeFfnLayout layout = layout_of(a);
  const Workspace workspace(layout.workspace, a.x.place());
  const auto at = [&](int64_t begin) { return workspace.at(begin); };

  const int64_t experts = num_experts(a.experts);
  const auto [weights, ids] =
      moe_route(a.logits, a.correction_bias, a.topk, a.score, a.norm_topk_prob,
                a.routed_scaling_factor, a.n_group, a.topk_group,
                {at(layout.topk_weights), at(layout.topk_ids)}, {at(layout.tokens), experts + 1});
  const auto [permuted, scale, tokens, row_index] = moe_dispatch(
      a.x, ids, experts, 0, a.first_expert,
      {at(layout.permuted), at(layout.scale), at(layout.tokens), at(layout.row_index)});
  const std::string_view out_dtype = a.x.dtype() == PaddleType::FLOAT16 ? "float16" : "bfloat16";
  const Tensor y = run_experts(permuted, tokens, &scale, a.experts, out_dtype, 0, layout.experts,
                               workspace, {at(layout.y)}, Start::kAwaitingTokens);
  constexpr bool kStartsEarly = true;
  return moe_combine(y, weights, row_index, a.shared_output, kStartsEarly);
}

}  // namespace w4afp8
