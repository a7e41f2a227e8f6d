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

// Stores that say how long L2 should keep what they write.
#pragma once

#include "ptx/bulk_copy.cuh"

namespace w4afp8::ptx {

__device__ __forceinline__ void store(void* destination, const uint4& value, CachePolicy policy) {
  asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(destination),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w),
               "l"(static_cast<uint64_t>(policy))
               : "memory");
}

}  // namespace w4afp8::ptx
