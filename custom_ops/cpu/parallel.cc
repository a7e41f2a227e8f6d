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

#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace w4afp8::cpu {

int64_t max_workers() {
  const int64_t hardware = std::thread::hardware_concurrency();
  return std::clamp<int64_t>(hardware, 1, 16);
}

void parallel_for(int64_t count, int64_t grain, int64_t workers,
                  const std::function<void(int64_t, int64_t)>& body) {
  const int64_t pieces = (count + grain - 1) / grain;
  if (pieces <= 1 || workers <= 1) {
    if (count > 0) body(0, count);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&] {
    try {
      for (int64_t piece; (piece = next.fetch_add(1)) < pieces;) {
        body(piece * grain, std::min(count, (piece + 1) * grain));
      }
    } catch (...) {
      next.store(pieces);
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  const int64_t others = std::min(workers, pieces) - 1;
  threads.reserve(others);
  try {
    for (int64_t i = 0; i < others; ++i) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // The system grants no more threads: those that started, and this one, do the work.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace w4afp8::cpu
