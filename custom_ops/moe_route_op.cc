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

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "moe_route/params.h"
#include "ops.h"
#include "registered.h"
#ifdef W4AFP8_WITH_CUDA
#include "moe_route/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {
namespace {

// Which experts can be chosen: those of topk_group of n_group groups.
void check_groups(int64_t experts, int64_t topk, int64_t n_group, int64_t topk_group) {
  check_range(n_group, "n_group", 1, std::min(kMaxGroups, experts));
  if (experts % n_group != 0) {
    fail("n_group", "a divisor of the " + std::to_string(experts) + " experts of logits",
         std::to_string(n_group));
  }
  check_range(topk_group, "topk_group", 1, n_group);
  check_range(topk, "topk", 1, std::min(kMaxTopk, topk_group * (experts / n_group)));
}

}  // namespace

std::array<Tensor, 2> moe_route(const Tensor& logits, const Tensor* correction_bias, int64_t topk,
                                std::string_view score, bool norm_topk_prob,
                                double routed_scaling_factor, int64_t n_group, int64_t topk_group,
                                Outputs outputs, UnknownSums unknown) {
  check_tensor(logits, "logits");
  check_dtype(logits, "logits", {PaddleType::FLOAT32, PaddleType::BFLOAT16, PaddleType::FLOAT16});
  check_rank(logits, "logits", 2, "[tokens, experts]");
  const int64_t tokens = logits.dims()[0], experts = logits.dims()[1];
  check_range(experts, "experts of logits", 1, kMaxExperts);
  if (correction_bias != nullptr) {
    check_tensor(*correction_bias, "correction_bias", logits);
    check_dtype(*correction_bias, "correction_bias", {PaddleType::FLOAT32});
    check_shape(*correction_bias, "correction_bias", {experts});
  }
  check_groups(experts, topk, n_group, topk_group);
  const RouteScore kind = score_of(score, "score");
  const auto factor = static_cast<float>(routed_scaling_factor);
  if (!std::isfinite(factor)) {
    fail("routed_scaling_factor", "a finite float32", std::to_string(routed_scaling_factor));
  }

  Tensor weights = outputs.make({tokens, topk}, PaddleType::FLOAT32, logits.place());
  Tensor ids = outputs.make({tokens, topk}, PaddleType::INT32, logits.place());
  if (tokens > 0) {
    const MoeRouteParams params{logits.data(),
                                correction_bias ? correction_bias->data<float>() : nullptr,
                                weights.data<float>(),
                                ids.data<int32_t>(),
                                tokens,
                                experts,
                                topk,
                                data_type_of(logits),
                                kind,
                                norm_topk_prob,
                                factor,
                                n_group,
                                topk_group,
                                static_cast<int32_t*>(unknown.sums),
                                unknown.count};
    W4AFP8_RUN(moe_route, params, logits);
  }
  return {weights, ids};
}

namespace {

std::vector<Tensor> moe_route_kernel(const Tensor& logits, const OptionalTensor& correction_bias,
                                     int64_t topk, const std::string& score, bool norm_topk_prob,
                                     float routed_scaling_factor, int64_t n_group,
                                     int64_t topk_group) {
  return registered([&] {
    return to_vector(moe_route(logits, pointer_to(correction_bias), topk, score, norm_topk_prob,
                               routed_scaling_factor, n_group, topk_group));
  });
}

std::vector<Shape> moe_route_shape(const Shape& logits, const OptionalShape&, int64_t topk,
                                   const std::string& score, bool, float, int64_t, int64_t) {
  const Shape slots{size_at(logits, 0), known_size(topk)};
  return {slots, slots};
}

std::vector<PaddleType> moe_route_type(PaddleType, const OptionalType&) {
  return {PaddleType::FLOAT32, PaddleType::INT32};
}

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_moe_route)
    .Inputs({"logits", paddle::Optional("correction_bias")})
    .Outputs({"topk_weights", "topk_ids"})
    .Attrs({"topk: int64_t", "score: std::string", "norm_topk_prob: bool",
            "routed_scaling_factor: float", "n_group: int64_t", "topk_group: int64_t"})
    .SetKernelFn(PD_KERNEL(w4afp8::moe_route_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::moe_route_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::moe_route_type));
