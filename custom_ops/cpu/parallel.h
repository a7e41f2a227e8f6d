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

// A parallel loop over std::thread: no pool, no OpenMP runtime beside the one Paddle brings.
#pragma once

#include <cstdint>
#include <functional>

namespace w4afp8::cpu {

// Threads worth starting on this machine, at most 16.
int64_t max_workers();

// Runs body(begin, end) over [0, count) in pieces of `grain`, on the calling thread and up to
// workers - 1 others. An exception of one piece stops the loop and is rethrown here.
void parallel_for(int64_t count, int64_t grain, int64_t workers,
                  const std::function<void(int64_t, int64_t)>& body);

inline void parallel_for(int64_t count, int64_t grain,
                         const std::function<void(int64_t, int64_t)>& body) {
  parallel_for(count, grain, max_workers(), body);
}

// Rows to hand out at once where a row costs about `row_elements` simple steps: starting a thread
// costs some 20 us, so a piece should be tens of microseconds of work.
inline int64_t row_grain(int64_t row_elements) {
  constexpr int64_t kElementsPerPiece = 1 << 16;
  return row_elements >= kElementsPerPiece ? 1 : kElementsPerPiece / (row_elements + 1) + 1;
}

}  // namespace w4afp8::cpu
