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

// The up projections of multi-head latent attention: q_nope @ W_K and x @ W_V for each head. The
// packed layouts are those of gpu_ops/mla_up/layout.h.

#include "dispatch.h"
#include "mla_up/params.h"
#include "ops.h"
#include "registered.h"
#ifdef W4AFP8_WITH_CUDA
#include "mla_up/launch.h"
#endif
#include "cpu/kernels.h"

namespace w4afp8 {
namespace {

constexpr int64_t kStrideBytes = 16;  // one load

// Names of the operands in errors.
struct Names {
  const char* x;
  const char* tokens;
  const char* heads;
  const char* in_features;
  const char* weight;
  const char* out_features;
  const char* scale;
  const char* x_scale;
};
constexpr Names kKUpNames{"q_nope", "tokens of q_nope", "heads of q_nope", "nope of q_nope",
                          "w_k",    "lora of w_k",      "w_k_scale",       "q_scale"};
constexpr Names kVUpNames{"x",   "tokens of x", "heads of x", "lora of x",
                          "w_v", "v of w_v",    "w_v_scale",  "x_scale"};

const Names& names_of(MlaUp op) { return op == MlaUp::kKUp ? kKUpNames : kVUpNames; }

// Elements from one index of `axis` to the next. That of a single index is never used, and a view
// may hold anything there; so may a tensor without elements.
int64_t stride_of(const Tensor& x, const char* name, int axis, int64_t contiguous) {
  if (x.dims()[axis] <= 1 || x.numel() == 0) return contiguous;
  const int64_t stride = x.strides()[axis];
  const int64_t unit = kStrideBytes / static_cast<int64_t>(phi::SizeOf(x.dtype()));
  if (on_gpu(x) && stride % unit != 0) {
    fail(name, "strides in multiples of " + std::to_string(unit),
         "strides " + to_string(x.strides()) + "; call contiguous()");
  }
  return stride;
}

// The CUDA kernels keep all inputs of a tile in shared memory, and are built for some numbers of them.
void check_gpu_inputs(const Names& names, const MlaUpParams& params) {
  const bool is_k = params.op == MlaUp::kKUp;
  const int64_t in = params.in_features;
  const bool known =
      is_k ? in == 64 || in == 128 || in == 192 : in == 256 || in == 512 || in == 768;
  if (known) return;
  fail(names.in_features, is_k ? "64, 128 or 192 on a GPU" : "256, 512 or 768 on a GPU",
       std::to_string(in));
}

// Fills what the activations say by themselves.
void read_x(const Tensor& x, MlaUpParams* params) {
  const Names& names = names_of(params->op);
  check_view(x, names.x);
  check_rank(x, names.x, 3,
             params->op == MlaUp::kKUp ? "[tokens, heads, nope]" : "[tokens, heads, lora]");
  params->tokens = x.dims()[0];
  params->heads = x.dims()[1];
  params->in_features = x.dims()[2];
  check_range(params->tokens, names.tokens, 0, INT32_MAX);
  check_range(params->heads, names.heads, 1, INT32_MAX);
  check_multiple(params->in_features, names.in_features, kMlaBlock);
  check_range(params->in_features, names.in_features, 1, kMlaMostInputs);
  if (on_gpu(x)) check_gpu_inputs(names, *params);
  params->x_token_stride = stride_of(x, names.x, 0, params->heads * params->in_features);
  params->x_head_stride = stride_of(x, names.x, 1, params->in_features);
  params->x = x.data();
}

// FP8 activations have scales, others have none.
void read_x_scale(const Tensor& x, const Tensor* x_scale, MlaUpParams* params) {
  const Names& names = names_of(params->op);
  if (x_scale == nullptr) {
    if (x.dtype() == PaddleType::FLOAT8_E4M3FN) {
      if (params->tokens == 0) return;  // Paddle's dispatch drops optional tensors without elements
      fail(names.x_scale, std::string("float32 scales, as ") + names.x + " is float8_e4m3fn",
           "None");
    }
    return check_dtype(x, names.x, {PaddleType::BFLOAT16, PaddleType::FLOAT16});
  }
  if (x.dtype() != PaddleType::FLOAT8_E4M3FN) {
    fail(names.x_scale, std::string("None, as ") + names.x + " is not float8_e4m3fn", "a tensor");
  }
  check_tensor(*x_scale, names.x_scale, x);
  check_dtype(*x_scale, names.x_scale, {PaddleType::FLOAT32});
  check_shape(*x_scale, names.x_scale, {params->tokens, params->heads});
  params->x_scale = x_scale->data<float>();
}

// `out_dtype`: "" for x's own type, or bfloat16 where x is FP8.
PaddleType out_type_of(PaddleType x, std::string_view out_dtype) {
  if (x == PaddleType::FLOAT8_E4M3FN) {
    return out_dtype.empty() ? PaddleType::BFLOAT16 : half_type_of(out_dtype, "out_dtype");
  }
  if (!out_dtype.empty() && half_type_of(out_dtype, "out_dtype") != x) {
    fail("out_dtype", "the dtype of 16-bit activations", "'" + std::string(out_dtype) + "'");
  }
  return x;
}

void read_weight(const Tensor& x, const Tensor& weight, const Tensor& scale, MlaUpParams* params) {
  const Names& names = names_of(params->op);
  const bool is_k = params->op == MlaUp::kKUp;
  const int64_t heads = params->heads, in = params->in_features;
  check_tensor(weight, names.weight, x);
  check_dtype(weight, names.weight, {PaddleType::UINT8});
  check_rank(weight, names.weight, 3, is_k ? "[heads, lora, nope / 2]" : "[heads, v, lora / 2]");
  const int64_t out = params->out_features = weight.dims()[1];
  check_multiple(out, names.out_features, kMlaBlock);
  check_range(out, names.out_features, 1, INT32_MAX);
  check_shape(weight, names.weight, {heads, out, in / 2});
  check_tensor(scale, names.scale, x);
  check_dtype(scale, names.scale, {PaddleType::UINT8});
  if (is_k) {
    check_shape(scale, names.scale, {heads, out / kMlaGroup, in});
  } else {
    check_shape(scale, names.scale, {heads, out, in / kMlaGroup});
  }
  params->weight = weight.data<uint8_t>();
  params->weight_scale = scale.data<uint8_t>();
}

Tensor mla_up(MlaUp op, const Tensor& x, const Tensor& weight, const Tensor& scale,
              const Tensor* x_scale, std::string_view out_dtype) {
  MlaUpParams params{};
  params.op = op;
  read_x(x, &params);
  read_x_scale(x, x_scale, &params);
  read_weight(x, weight, scale, &params);
  if (on_gpu(x) && params.tokens > 0) {
    check_aligned(params.x, names_of(op).x);
    check_aligned(params.weight, names_of(op).weight);
    check_aligned(params.weight_scale, names_of(op).scale);
  }
  Tensor out = paddle::empty({params.tokens, params.heads, params.out_features},
                             out_type_of(x.dtype(), out_dtype), x.place());
  params.out = out.data();
  params.type = data_type_of(out);
  if (params.tokens > 0) W4AFP8_RUN(mla_up, params, x);
  return out;
}

}  // namespace

Tensor mla_k_up(const Tensor& q_nope, const Tensor& w_k, const Tensor& w_k_scale,
                const Tensor* q_scale, std::string_view out_dtype) {
  return mla_up(MlaUp::kKUp, q_nope, w_k, w_k_scale, q_scale, out_dtype);
}

Tensor mla_v_up(const Tensor& x, const Tensor& w_v, const Tensor& w_v_scale, const Tensor* x_scale,
                std::string_view out_dtype) {
  return mla_up(MlaUp::kVUp, x, w_v, w_v_scale, x_scale, out_dtype);
}

namespace {

template <MlaUp kOp>
std::vector<Tensor> mla_up_kernel(const Tensor& x, const Tensor& weight, const Tensor& scale,
                                  const OptionalTensor& x_scale, const std::string& out_dtype) {
  return registered([&] {
    return std::vector<Tensor>{mla_up(kOp, x, weight, scale, pointer_to(x_scale), out_dtype)};
  });
}

std::vector<Shape> mla_up_shape(const Shape& x, const Shape& weight, const Shape&,
                                const OptionalShape&, const std::string& out_dtype) {
  return {with_last(x, size_at(weight, 1))};
}

std::vector<PaddleType> mla_up_type(PaddleType x, PaddleType, PaddleType, const OptionalType&,
                                    const std::string& out_dtype) {
  if (x != PaddleType::FLOAT8_E4M3FN) return {x};
  return {out_dtype == "float16" ? PaddleType::FLOAT16 : PaddleType::BFLOAT16};
}

}  // namespace
}  // namespace w4afp8

PD_BUILD_OP(w4afp8_mla_k_up)
    .Inputs({"q_nope", "w_k", "w_k_scale", paddle::Optional("q_scale")})
    .Outputs({"out"})
    .Attrs({"out_dtype: std::string"})
    .SetKernelFn(PD_KERNEL(w4afp8::mla_up_kernel<w4afp8::MlaUp::kKUp>))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::mla_up_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::mla_up_type));

PD_BUILD_OP(w4afp8_mla_v_up)
    .Inputs({"x", "w_v", "w_v_scale", paddle::Optional("x_scale")})
    .Outputs({"out"})
    .Attrs({"out_dtype: std::string"})
    .SetKernelFn(PD_KERNEL(w4afp8::mla_up_kernel<w4afp8::MlaUp::kVUp>))
    .SetInferShapeFn(PD_INFER_SHAPE(w4afp8::mla_up_shape))
    .SetInferDtypeFn(PD_INFER_DTYPE(w4afp8::mla_up_type));
