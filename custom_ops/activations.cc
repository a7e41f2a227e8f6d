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

namespace w4afp8 {

void check_tokens(const Tensor& tokens, const Tensor& first, int64_t token_padding) {
  check_tensor(tokens, "tokens", first);
  check_dtype(tokens, "tokens", {PaddleType::INT32, PaddleType::INT64});
  check_rank(tokens, "tokens", 1,
             token_padding > 0 ? "[experts]" : "[experts + 1] with a leading 0, or [experts]");
  check_range(tokens.numel(), "entries of tokens", 1, INT32_MAX);
}

void check_activation_rank(const Tensor& x, const char* name, int64_t token_padding) {
  if (token_padding == 0) return check_rank(x, name, 2, "[num_tokens, features]");
  check_rank(x, name, 3, "[experts, token_padding, features]");
  if (x.dims()[1] == token_padding) return;
  fail(name, "token_padding " + std::to_string(token_padding) + " rows for each expert",
       "the shape " + to_string(x.dims()));
}

std::vector<int64_t> with_features(const Tensor& x, int64_t features) {
  const common::DDim& dims = x.dims();
  std::vector<int64_t> shape(dims.Get(), dims.Get() + dims.size());
  shape.back() = features;
  return shape;
}

std::vector<int64_t> without_features(const Tensor& x) {
  const common::DDim& dims = x.dims();
  return {dims.Get(), dims.Get() + dims.size() - 1};
}

}  // namespace w4afp8
