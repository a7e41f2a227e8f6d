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
#include "ops.h"
#include "registered.h"
#include "weight_pack/params.h"
#ifdef W4AFP8_WITH_CUDA
#include "weight_pack/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {
namespace {

constexpr int64_t kInUnit = 32;  // codes of one MXFP4 group, the smallest unit along in_features
constexpr char kCodesShape[] = "[experts, out_features, in_features / 2]";
constexpr char kPackedShape[] = "[experts, padded_out, padded_in / 2]";

}  // namespace

Tensor pack_weight(const Tensor& codes, std::string_view weight_format) {
  check_tensor(codes, "codes");
  check_dtype(codes, "codes", {PaddleType::UINT8});
  check_rank(codes, "codes", 3, kCodesShape);
  const int64_t experts = codes.dims()[0], out = codes.dims()[1], in = 2 * codes.dims()[2];
  check_range(experts, "experts of codes", 1, INT64_MAX);
  check_range(out, "out_features of codes", 1, INT64_MAX);
  check_multiple(in, "in_features of codes", kInUnit);
  const WeightFormat format = weight_format_of(weight_format, "weight_format");
  if (on_gpu(codes)) check_aligned(codes.data(), "codes");

  const WeightLayout layout{out, in};
  Tensor packed = paddle::empty({experts, layout.padded_out(), layout.padded_in() / 2},
                                PaddleType::UINT8, codes.place());
  const WeightPackParams params{const_cast<uint8_t*>(codes.data<uint8_t>()),
                                packed.data<uint8_t>(),
                                experts,
                                out,
                                in,
                                format};
  W4AFP8_RUN(pack_weight, params, codes);
  return packed;
}

Tensor unpack_weight(const Tensor& packed, std::string_view weight_format, int64_t out_features,
                     int64_t in_features) {
  check_tensor(packed, "packed");
  check_dtype(packed, "packed", {PaddleType::UINT8});
  check_rank(packed, "packed", 3, kPackedShape);
  const WeightFormat format = weight_format_of(weight_format, "weight_format");
  check_range(out_features, "out_features", 1, INT32_MAX);
  check_range(in_features, "in_features", 1, INT32_MAX);
  check_multiple(in_features, "in_features", kInUnit);
  const int64_t experts = packed.dims()[0];
  check_range(experts, "experts of packed", 1, INT64_MAX);
  const WeightLayout layout{out_features, in_features};
  check_shape(packed, "packed", {experts, layout.padded_out(), layout.padded_in() / 2});
  if (on_gpu(packed)) check_aligned(packed.data(), "packed");

  Tensor codes =
      paddle::empty({experts, out_features, in_features / 2}, PaddleType::UINT8, packed.place());
  const WeightPackParams params{codes.data<uint8_t>(),
                                const_cast<uint8_t*>(packed.data<uint8_t>()),
                                experts,
                                out_features,
                                in_features,
                                format};
  W4AFP8_RUN(unpack_weight, params, packed);
  return codes;
}

namespace {

std::vector<Tensor> pack_weight_kernel(const Tensor& codes, const std::string& weight_format) {
  return registered([&] { return std::vector<Tensor>{pack_weight(codes, weight_format)}; });
}

std::vector<Shape> pack_weight_shape(const Shape& codes, const std::string& weight_format) {
  return {{size_at(codes, 0), rounded(size_at(codes, 1), kSubBlockOut),
           rounded(size_at(codes, 2), kHalfBlockIn / 2)}};
}

std::vector<PaddleType> pack_weight_type(PaddleType codes) { return {codes}; }

std::vector<Tensor> unpack_weight_kernel(const Tensor& packed, const std::string& weight_format,
                                         int64_t out_features, int64_t in_features) {
  return registered([&] {
    return std::vector<Tensor>{unpack_weight(packed, weight_format, out_features, in_features)};
  });
}

std::vector<Shape> unpack_weight_shape(const Shape& packed, const std::string& weight_format,
                                       int64_t out_features, int64_t in_features) {
  return {{size_at(packed, 0), known_size(out_features), halved(known_size(in_features))}};
}

std::vector<PaddleType> unpack_weight_type(PaddleType packed) { return {packed}; }

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_pack_weight)
    .Inputs({"codes"})
    .Outputs({"packed"})
    .Attrs({"weight_format: std::string"})
    .SetKernelFn(PD_KERNEL(w4afp8::pack_weight_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::pack_weight_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::pack_weight_type));

PD_BUILD_OP(w4afp8_unpack_weight)
    .Inputs({"packed"})
    .Outputs({"codes"})
    .Attrs({"weight_format: std::string", "out_features: int64_t", "in_features: int64_t"})
    .SetKernelFn(PD_KERNEL(w4afp8::unpack_weight_kernel))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::unpack_weight_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::unpack_weight_type));
