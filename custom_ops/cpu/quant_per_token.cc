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

#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/row_quant.h"

namespace w4afp8::cpu {

void quant_per_token(const QuantPerTokenParams& params) {
  const int64_t features = params.features;
  parallel_for(params.num_rows, row_grain(features), [&](int64_t begin, int64_t end) {
    std::vector<float> values(features);
    for (int64_t row = begin; row < end; ++row) {
      load_floats(params.in_type, params.x, row * features, features, values.data());
      quantize_row(values.data(), features, params.out + row * features, params.scale + row);
    }
  });
}

}  // namespace w4afp8::cpu
