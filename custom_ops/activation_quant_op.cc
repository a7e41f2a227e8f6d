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

#include "activation_quant/params.h"
#include "activations.h"
#include "dispatch.h"
#include "ops.h"
#include "registered.h"
#ifdef W4AFP8_WITH_CUDA
#include "activation_quant/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {
namespace {

constexpr PaddleType kFp8 = PaddleType::FLOAT8_E4M3FN;

uint8_t* bytes_of(Tensor& t) { return static_cast<uint8_t*>(t.data()); }

// -1, or a power of two that divides the features.
void check_hadamard(int64_t size, int64_t features) {
  constexpr int64_t kLeast = 8, kMost = 16384;
  const bool is_power = size >= kLeast && size <= kMost && (size & (size - 1)) == 0;
  if (size == -1 || (is_power && features % size == 0)) return;
  fail("hadamard_block_size",
       "-1 (none) or a power of two from 8 to 16384 that divides the " + std::to_string(features) +
           " output features",
       std::to_string(size));
}

}  // namespace

std::array<Tensor, 2> quant_per_token(const Tensor& x) {
  check_tensor(x, "x");
  check_dtype(x, "x", {PaddleType::BFLOAT16, PaddleType::FLOAT16, PaddleType::FLOAT32});
  const int rank = x.dims().size();
  if (rank != 3) check_rank(x, "x", 2, "[tokens, features] or [tokens, heads, features]");
  const int64_t rows = rows_of(x), features = x.dims()[rank - 1];
  check_range(features, "features of x", 1, INT32_MAX);

  Tensor out = paddle::empty(with_features(x, features), kFp8, x.place());
  Tensor scale = paddle::empty(without_features(x), PaddleType::FLOAT32, x.place());
  if (rows > 0) {
    const QuantPerTokenParams params{x.data(), bytes_of(out), scale.data<float>(),
                                     rows,     features,      data_type_of(x)};
    W4AFP8_RUN(quant_per_token, params, x);
  }
  return {out, scale};
}

std::array<Tensor, 2> activation_quant(const Tensor& h, const Tensor& tokens,
                                       std::string_view activation, int64_t token_padding,
                                       int64_t hadamard_block_size, Outputs outputs,
                                       bool starts_early, bool consumes_h) {
  check_tensor(h, "h");
  check_dtype(h, "h", {PaddleType::BFLOAT16, PaddleType::FLOAT16});
  const Activation kind = activation_of(activation, "activation");
  check_range(token_padding, "token_padding", 0, INT32_MAX);
  check_activation_rank(h, "h", token_padding);
  check_tokens(tokens, h, token_padding);
  if (token_padding > 0) check_shape(tokens, "tokens", {h.dims()[0]});
  const int64_t in_features = h.dims()[h.dims().size() - 1];
  const int64_t inputs_per_output = is_gated(kind) ? 2 : 1;
  check_multiple(in_features, "features of h", inputs_per_output);
  check_range(in_features, "features of h", 1, INT32_MAX);
  const int64_t features = in_features / inputs_per_output, rows = rows_of(h);
  check_hadamard(hadamard_block_size, features);

  Tensor out = outputs.make(with_features(h, features), kFp8, h.place());
  Tensor scale = outputs.make(without_features(h), PaddleType::FLOAT32, h.place());
  if (rows > 0) {
    // Where prefix sums have a leading 0, it reads as one more expert without tokens: the rows that
    // hold tokens are the same.
    const TokenLayout layout{tokens.data(), tokens.dtype() == PaddleType::INT64,
                             false,         token_padding,
                             rows,          tokens.numel()};
    const ActivationQuantParams params{
        h.data(),        bytes_of(out), scale.data<float>(), layout,       features,
        data_type_of(h), kind,          hadamard_block_size, starts_early, consumes_h};
    W4AFP8_RUN(activation_quant, params, h);
  }
  return {out, scale};
}

namespace {

std::vector<Tensor> quant_per_token_kernel(const Tensor& x) {
  return registered([&] { return to_vector(quant_per_token(x)); });
}

std::vector<Shape> quant_per_token_shape(const Shape& x) { return {x, without_last(x)}; }

std::vector<PaddleType> quant_per_token_type(PaddleType) { return {kFp8, PaddleType::FLOAT32}; }

std::vector<Tensor> activation_quant_kernel(const Tensor& h, const Tensor& tokens,
                                            const std::string& activation, int64_t token_padding,
                                            int64_t hadamard_block_size) {
  return registered([&] {
    return to_vector(activation_quant(h, tokens, activation, token_padding, hadamard_block_size));
  });
}

std::vector<Shape> activation_quant_shape(const Shape& h, const Shape&,
                                          const std::string& activation, int64_t, int64_t) {
  if (h.empty()) return {h, h};
  return {with_last(h, activated(activation, h.back())), without_last(h)};
}

std::vector<PaddleType> activation_quant_type(PaddleType, PaddleType) {
  return {kFp8, PaddleType::FLOAT32};
}

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_quant_per_token)
    .Inputs({"x"})
    .Outputs({"out", "scale"})
    .SetKernelFn(PD_KERNEL(w4afp8::quant_per_token_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::quant_per_token_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::quant_per_token_type));

PD_BUILD_OP(w4afp8_activation_quant)
    .Inputs({"h", "tokens"})
    .Outputs({"out", "scale"})
    .Attrs({"activation: std::string", "token_padding: int64_t", "hadamard_block_size: int64_t"})
    .SetKernelFn(PD_KERNEL(w4afp8::activation_quant_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::activation_quant_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::activation_quant_type));
