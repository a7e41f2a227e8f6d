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

#include "dispatch.h"
#include "moe_route/params.h"
#include "ops.h"
#include "registered.h"
#ifdef W4AFP8_WITH_CUDA
#include "moe_route/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {

std::array<Tensor, 4> moe_dispatch(const Tensor& x, const Tensor& topk_ids, int64_t experts,
                                   int64_t token_padding, int64_t first_expert, Outputs outputs) {
  check_tensor(x, "x");
  check_dtype(x, "x", {PaddleType::BFLOAT16, PaddleType::FLOAT16});
  check_rank(x, "x", 2, "[tokens, hidden]");
  check_tensor(topk_ids, "topk_ids", x);
  check_dtype(topk_ids, "topk_ids", {PaddleType::INT32});
  check_rank(topk_ids, "topk_ids", 2, "[tokens, topk]");
  const int64_t tokens = x.dims()[0], hidden = x.dims()[1], topk = topk_ids.dims()[1];
  check_range(hidden, "hidden of x", 1, INT32_MAX);
  check_range(topk, "topk of topk_ids", 1, kMaxTopk);
  check_shape(topk_ids, "topk_ids", {tokens, topk});
  check_range(experts, "experts", 1, kMaxExperts);
  check_range(tokens, "tokens of x", 0, INT32_MAX / topk);  // rows are int32
  check_range(token_padding, "token_padding", 0, INT32_MAX / experts);
  check_range(first_expert, "first_expert", 0, INT32_MAX - experts);

  const bool padded = token_padding > 0;
  std::vector<int64_t> rows{tokens * topk};
  if (padded) rows = {experts, token_padding};
  std::vector<int64_t> copies = rows;
  copies.push_back(hidden);
  Tensor permuted = outputs.make(copies, PaddleType::FLOAT8_E4M3FN, x.place());
  Tensor scale = outputs.make(rows, PaddleType::FLOAT32, x.place());
  Tensor sums = outputs.make({experts + (padded ? 0 : 1)}, PaddleType::INT32, x.place());
  Tensor row_index = outputs.make({tokens, topk}, PaddleType::INT32, x.place());
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
                                 data_type_of(x),
                                 token_padding,
                                 static_cast<int32_t>(first_expert)};
  W4AFP8_RUN(moe_dispatch, params, x);
  return {permuted, scale, sums, row_index};
}

namespace {

std::vector<Tensor> moe_dispatch_kernel(const Tensor& x, const Tensor& topk_ids, int64_t experts,
                                        int64_t token_padding, int64_t first_expert) {
  return registered(
      [&] { return to_vector(moe_dispatch(x, topk_ids, experts, token_padding, first_expert)); });
}

std::vector<Shape> moe_dispatch_shape(const Shape& x, const Shape& topk_ids, int64_t experts,
                                      int64_t token_padding, int64_t) {
  if (token_padding > 0) {
    const Shape rows{known_size(experts), known_size(token_padding)};
    return {{rows[0], rows[1], size_at(x, 1)}, rows, {rows[0]}, topk_ids};
  }
  const int64_t rows = times(size_at(x, 0), size_at(topk_ids, 1));
  return {{rows, size_at(x, 1)}, {rows}, {one_more(experts)}, topk_ids};
}

std::vector<PaddleType> moe_dispatch_type(PaddleType, PaddleType) {
  return {PaddleType::FLOAT8_E4M3FN, PaddleType::FLOAT32, PaddleType::INT32, PaddleType::INT32};
}

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_moe_dispatch)
    .Inputs({"x", "topk_ids"})
    .Outputs({"permuted", "scale", "tokens", "row_index"})
    .Attrs({"experts: int64_t", "token_padding: int64_t", "first_expert: int64_t"})
    .SetKernelFn(PD_KERNEL(w4afp8::moe_dispatch_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::moe_dispatch_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::moe_dispatch_type));
