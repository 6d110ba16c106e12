// What is found out once and kept for the life of the process.
#pragma once
#include <map>
#include <mutex>
#include <optional>

namespace cpr {

// Only answers are kept: what could not be found (nullopt, as while a device is short of memory) is looked
// for again.
template <class Key, class Value>
struct Remembered {
  std::map<Key, Value> values;
  std::mutex alone;
  template <class Find>
  std::optional<Value> of(const Key& key, Find find) {
    const std::lock_guard<std::mutex> guard(alone);
    const auto known = values.find(key);
    if (known != values.end()) return known->second;
    const std::optional<Value> found = find();
    if (found) values.emplace(key, *found);
    return found;
  }
};

}  // namespace cpr
