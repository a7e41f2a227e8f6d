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

#include "activations.h"
#include "dispatch.h"
#include "moe_route/params.h"
#include "ops.h"
#include "registered.h"
#ifdef W4AFP8_WITH_CUDA
#include "moe_route/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {

Tensor moe_combine(const Tensor& y, const Tensor& topk_weights, const Tensor& row_index,
                   const Tensor* shared_output, bool starts_early) {
  check_tensor(y, "y");
  check_dtype(y, "y", {PaddleType::BFLOAT16, PaddleType::FLOAT16});
  if (y.dims().size() != 3) check_rank(y, "y", 2, "[rows, hidden] or [experts, rows, hidden]");
  check_tensor(topk_weights, "topk_weights", y);
  check_dtype(topk_weights, "topk_weights", {PaddleType::FLOAT32});
  check_rank(topk_weights, "topk_weights", 2, "[tokens, topk]");
  check_tensor(row_index, "row_index", y);
  check_dtype(row_index, "row_index", {PaddleType::INT32});
  const int64_t tokens = topk_weights.dims()[0], topk = topk_weights.dims()[1];
  check_shape(row_index, "row_index", {tokens, topk});
  check_range(topk, "topk of topk_weights", 1, kMaxTopk);
  const int64_t hidden = y.dims()[y.dims().size() - 1];
  check_range(hidden, "hidden of y", 1, INT32_MAX);
  if (shared_output != nullptr) {
    check_tensor(*shared_output, "shared_output", y);
    check_dtype(*shared_output, "shared_output", {y.dtype()});
    check_shape(*shared_output, "shared_output", {tokens, hidden});
  }

  Tensor out = paddle::empty({tokens, hidden}, y.dtype(), y.place());
  if (tokens > 0) {
    const MoeCombineParams params{y.data(),
                                  topk_weights.data<float>(),
                                  row_index.data<int32_t>(),
                                  out.data(),
                                  tokens,
                                  rows_of(y),
                                  hidden,
                                  topk,
                                  data_type_of(y),
                                  shared_output ? shared_output->data() : nullptr,
                                  starts_early};
    W4AFP8_RUN(moe_combine, params, y);
  }
  return out;
}

namespace {

std::vector<Tensor> moe_combine_kernel(const Tensor& y, const Tensor& topk_weights,
                                       const Tensor& row_index,
                                       const OptionalTensor& shared_output) {
  return registered([&] {
    return std::vector<Tensor>{moe_combine(y, topk_weights, row_index, pointer_to(shared_output))};
  });
}

std::vector<Shape> moe_combine_shape(const Shape& y, const Shape& topk_weights, const Shape&,
                                     const OptionalShape&) {
  return {{size_at(topk_weights, 0), size_at(y, y.size() == 3 ? 2 : 1)}};
}

std::vector<PaddleType> moe_combine_type(PaddleType y, PaddleType, PaddleType,
                                         const OptionalType&) {
  return {y};
}

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_moe_combine)
    .Inputs({"y", "topk_weights", "row_index", paddle::Optional("shared_output")})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(w4afp8::moe_combine_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::moe_combine_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::moe_combine_type));
