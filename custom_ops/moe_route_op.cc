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

constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxTopk = 32;
constexpr char kSlotsShape[] = "[tokens, topk]";

}  // namespace

std::array<Tensor, 2> moe_route(const Tensor& logits, const Tensor* correction_bias, int64_t topk,
                                std::string_view score, bool norm_topk_prob,
                                double routed_scaling_factor) {
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
  check_range(topk, "topk", 1, std::min(kMaxTopk, experts));
  const RouteScore kind = score_of(score, "score");
  const auto factor = static_cast<float>(routed_scaling_factor);
  if (!std::isfinite(factor)) {
    fail("routed_scaling_factor", "a finite float32", std::to_string(routed_scaling_factor));
  }

  Tensor weights = paddle::empty({tokens, topk}, PaddleType::FLOAT32, logits.place());
  Tensor ids = paddle::empty({tokens, topk}, PaddleType::INT32, logits.place());
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
                                factor};
    W4AFP8_RUN(moe_route, params, logits);
  }
  return {weights, ids};
}

std::array<Tensor, 4> moe_dispatch(const Tensor& x, const Tensor& topk_ids, int64_t experts) {
  check_tensor(x, "x");
  check_dtype(x, "x", {PaddleType::BFLOAT16, PaddleType::FLOAT16});
  check_rank(x, "x", 2, "[tokens, hidden]");
  check_tensor(topk_ids, "topk_ids", x);
  check_dtype(topk_ids, "topk_ids", {PaddleType::INT32});
  check_rank(topk_ids, "topk_ids", 2, kSlotsShape);
  const int64_t tokens = x.dims()[0], hidden = x.dims()[1], topk = topk_ids.dims()[1];
  check_range(hidden, "hidden of x", 1, INT32_MAX);
  check_range(topk, "topk of topk_ids", 1, kMaxTopk);
  check_shape(topk_ids, "topk_ids", {tokens, topk});
  check_range(experts, "experts", 1, kMaxExperts);
  check_range(tokens, "tokens of x", 0, INT32_MAX / topk);  // rows are int32

  const int64_t rows = tokens * topk;
  Tensor permuted = paddle::empty({rows, hidden}, PaddleType::FLOAT8_E4M3FN, x.place());
  Tensor scale = paddle::empty({rows}, PaddleType::FLOAT32, x.place());
  Tensor sums = paddle::empty({experts + 1}, PaddleType::INT32, x.place());
  Tensor row_index = paddle::empty({tokens, topk}, PaddleType::INT32, x.place());
  // Without tokens too: the prefix sums are zeros.
  const MoeDispatchParams params{x.data(),
                                 topk_ids.data<int32_t>(),
                                 static_cast<uint8_t*>(permuted.data()),
                                 scale.data<float>(),
                                 sums.data<int32_t>(),
                                 row_index.data<int32_t>(),
                                 tokens,
                                 hidden,
                                 experts,
                                 topk,
                                 data_type_of(x)};
  W4AFP8_RUN(moe_dispatch, params, x);
  return {permuted, scale, sums, row_index};
}

Tensor moe_combine(const Tensor& y, const Tensor& topk_weights, const Tensor& row_index) {
  check_tensor(y, "y");
  check_dtype(y, "y", {PaddleType::BFLOAT16, PaddleType::FLOAT16});
  check_rank(y, "y", 2, "[rows, hidden]");
  check_tensor(topk_weights, "topk_weights", y);
  check_dtype(topk_weights, "topk_weights", {PaddleType::FLOAT32});
  check_rank(topk_weights, "topk_weights", 2, kSlotsShape);
  check_tensor(row_index, "row_index", y);
  check_dtype(row_index, "row_index", {PaddleType::INT32});
  const int64_t tokens = topk_weights.dims()[0], topk = topk_weights.dims()[1];
  check_shape(row_index, "row_index", {tokens, topk});
  check_range(topk, "topk of topk_weights", 1, kMaxTopk);
  check_range(y.dims()[1], "hidden of y", 1, INT32_MAX);

  Tensor out = paddle::empty({tokens, y.dims()[1]}, y.dtype(), y.place());
  if (tokens > 0) {
    const MoeCombineParams params{y.data(),
                                  topk_weights.data<float>(),
                                  row_index.data<int32_t>(),
                                  out.data(),
                                  tokens,
                                  y.dims()[0],
                                  y.dims()[1],
                                  topk,
                                  data_type_of(y)};
    W4AFP8_RUN(moe_combine, params, y);
  }
  return out;
}

namespace {

std::vector<Tensor> moe_route_kernel(const Tensor& logits, const OptionalTensor& correction_bias,
                                     int64_t topk, const std::string& score, bool norm_topk_prob,
                                     float routed_scaling_factor) {
  return registered([&] {
    return to_vector(moe_route(logits, pointer_to(correction_bias), topk, score, norm_topk_prob,
                               routed_scaling_factor));
  });
}

std::vector<Shape> moe_route_shape(const Shape& logits, const OptionalShape&, int64_t topk,
                                   const std::string& score, bool, float) {
  const Shape slots{size_at(logits, 0), topk};
  return {slots, slots};
}

std::vector<PaddleType> moe_route_type(PaddleType, const OptionalType&) {
  return {PaddleType::FLOAT32, PaddleType::INT32};
}

std::vector<Tensor> moe_dispatch_kernel(const Tensor& x, const Tensor& topk_ids, int64_t experts) {
  return registered([&] { return to_vector(moe_dispatch(x, topk_ids, experts)); });
}

std::vector<Shape> moe_dispatch_shape(const Shape& x, const Shape& topk_ids, int64_t experts) {
  const int64_t rows = times(size_at(x, 0), size_at(topk_ids, 1));
  return {{rows, size_at(x, 1)}, {rows}, {experts + 1}, topk_ids};
}

std::vector<PaddleType> moe_dispatch_type(PaddleType, PaddleType) {
  return {PaddleType::FLOAT8_E4M3FN, PaddleType::FLOAT32, PaddleType::INT32, PaddleType::INT32};
}

std::vector<Tensor> moe_combine_kernel(const Tensor& y, const Tensor& topk_weights,
                                       const Tensor& row_index) {
  return registered([&] { return std::vector<Tensor>{moe_combine(y, topk_weights, row_index)}; });
}

std::vector<Shape> moe_combine_shape(const Shape& y, const Shape& topk_weights, const Shape&) {
  return {{size_at(topk_weights, 0), size_at(y, 1)}};
}

std::vector<PaddleType> moe_combine_type(PaddleType y, PaddleType, PaddleType) { return {y}; }

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_moe_route)
    .Inputs({"logits", paddle::Optional("correction_bias")})
    .Outputs({"topk_weights", "topk_ids"})
    .Attrs({"topk: int64_t", "score: std::string", "norm_topk_prob: bool",
            "routed_scaling_factor: float"})
    .SetKernelFn(PD_KERNEL(w4afp8::moe_route_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::moe_route_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::moe_route_type));

PD_BUILD_OP(w4afp8_moe_dispatch)
    .Inputs({"x", "topk_ids"})
    .Outputs({"permuted", "scale", "tokens", "row_index"})
    .Attrs({"experts: int64_t"})
    .SetKernelFn(PD_KERNEL(w4afp8::moe_dispatch_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::moe_dispatch_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::moe_dispatch_type));

PD_BUILD_OP(w4afp8_moe_combine)
    .Inputs({"y", "topk_weights", "row_index"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(w4afp8::moe_combine_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::moe_combine_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::moe_combine_type));
