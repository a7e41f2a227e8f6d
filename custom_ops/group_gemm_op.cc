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
#include "group_gemm_arguments.h"
#include "ops.h"
#include "registered.h"
#ifdef W4AFP8_WITH_CUDA
#include "grouped_gemm/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {

Tensor group_gemm(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                  const Tensor& tokens, const Tensor* group_scale, const Tensor* x_scale,
                  const Tensor* bias, std::string_view weight_format, int64_t group_size,
                  int64_t token_padding, int64_t max_tokens, std::string_view out_dtype,
                  std::string_view accumulation, std::string_view activation, Outputs outputs,
                  Start start) {
  const PaddleType out_type = half_type_of(out_dtype, "out_dtype");
  GroupGemmParams params =
      read_arguments({x, weight, weight_scale, tokens, group_scale, x_scale, bias, weight_format,
                      group_size, token_padding, max_tokens, out_type, accumulation, activation});
  Tensor out = outputs.make(with_features(x, params.stored_features()), out_type, x.place());
  params.out = out.data();
  params.start = start;
  if (params.tokens.num_rows > 0) W4AFP8_RUN(group_gemm, params, x);
  return out;
}

namespace {

std::vector<Tensor> group_gemm_kernel(
    const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const Tensor& tokens,
    const OptionalTensor& group_scale, const OptionalTensor& x_scale, const OptionalTensor& bias,
    const std::string& weight_format, int64_t group_size, int64_t token_padding, int64_t max_tokens,
    const std::string& out_dtype, const std::string& accumulation, const std::string& activation) {
  return registered([&] {
    return std::vector<Tensor>{group_gemm(x, weight, weight_scale, tokens, pointer_to(group_scale),
                                          pointer_to(x_scale), pointer_to(bias), weight_format,
                                          group_size, token_padding, max_tokens, out_dtype,
                                          accumulation, activation)};
  });
}

std::vector<Shape> group_gemm_shape(const Shape& x, const Shape& weight, const Shape& weight_scale,
                                    const Shape& tokens, const OptionalShape&, const OptionalShape&,
                                    const OptionalShape&, const std::string& weight_format,
                                    int64_t group_size, int64_t token_padding, int64_t max_tokens,
                                    const std::string& out_dtype, const std::string&,
                                    const std::string& activation) {
  return {with_last(x, activated(activation, size_at(weight_scale, 1)))};
}

std::vector<PaddleType> group_gemm_type(PaddleType, PaddleType, PaddleType, PaddleType,
                                        const OptionalType&, const OptionalType&,
                                        const OptionalType&, const std::string& weight_format,
                                        int64_t group_size, int64_t token_padding,
                                        int64_t max_tokens, const std::string& out_dtype,
                                        const std::string&, const std::string&) {
  return {out_dtype == "float16" ? PaddleType::FLOAT16 : PaddleType::BFLOAT16};
}

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_group_gemm)
    .Inputs({"x", "weight", "weight_scale", "tokens", paddle::Optional("group_scale"),
             paddle::Optional("x_scale"), paddle::Optional("bias")})
    .Outputs({"out"})
    .Attrs({"weight_format: std::string", "group_size: int64_t", "token_padding: int64_t",
            "max_tokens: int64_t", "out_dtype: std::string", "accumulation: std::string",
            "activation: std::string"})
    .SetKernelFn(PD_KERNEL(w4afp8::group_gemm_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::group_gemm_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::group_gemm_type));
