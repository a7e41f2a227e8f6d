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

// The last few values that were made, for what follows from a key alone and takes longer to make than to find.
// Host-safe.
#pragma once

namespace w4afp8 {

template <class Key, class Value, int kEntries>
class Recent {
 public:
  // The value of `key`. If it is not among the last kEntries that were made, `make(key, value)` makes it in the place of
  // the oldest one, which is lost; nullptr where that returns false. Valid until kEntries others are made.
  template <class Make>
  const Value* find(const Key& key, Make make) {
    for (const Entry& entry : entries_) {
      if (entry.is_made && entry.key == key) return &entry.value;
    }
    Entry& entry = entries_[oldest_];
    entry.is_made = make(key, entry.value);
    if (!entry.is_made) return nullptr;
    entry.key = key;
    oldest_ = (oldest_ + 1) % kEntries;
    return &entry.value;
  }

 private:
  struct Entry {
    bool is_made = false;
    Key key;
    Value value;
  };
  Entry entries_[kEntries];
  int oldest_ = 0;
};

}  // namespace w4afp8
