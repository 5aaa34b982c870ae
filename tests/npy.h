// Reads the .npy files of the golden checkpoints: little-endian, C order, float32 or int32 (NumPy
// format version 1 to 3).
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace fewbit::testing {

template <typename T>
struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<T> values;
};

// Throws std::runtime_error naming the file when it is not such an array: a test then fails with
// the message.
template <typename T>
NpyArray<T> ReadNpy(const std::string& path) {
  const auto fail = [&](const std::string& why) -> std::runtime_error {
    return std::runtime_error(path + ": " + why);
  };
  std::ifstream in(path, std::ios::binary);
  if (!in) throw fail("cannot be opened");
  const std::string data((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (data.size() < 12 || data.compare(0, 6, "\x93NUMPY") != 0) throw fail("is not a .npy file");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<uint8_t>(data[i])); };
  const bool version1 = byte(6) == 1;
  const size_t begin = version1 ? 10 : 12;
  const size_t length =
      version1 ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  if (begin + length > data.size()) throw fail("has a header that is too long");
  const std::string header = data.substr(begin, length);
  const std::string want = std::is_same_v<T, float> ? "'<f4'" : "'<i4'";
  if (header.find(want) == std::string::npos) throw fail("is not of type " + want);
  if (header.find("'fortran_order': False") == std::string::npos) throw fail("is not in C order");
  NpyArray<T> array;
  size_t at = header.find("'shape': (");
  if (at == std::string::npos) throw fail("has no shape");
  at += 10;
  int64_t count = 1;
  while (at < header.size() && header[at] != ')') {
    size_t used = 0;
    array.shape.push_back(std::stoll(header.substr(at), &used));
    count *= array.shape.back();
    at += used;
    while (at < header.size() && (header[at] == ',' || header[at] == ' ')) ++at;
  }
  const size_t body = begin + length;
  if (data.size() - body != count * sizeof(T)) throw fail("has a body of the wrong length");
  array.values.resize(count);
  std::memcpy(array.values.data(), data.data() + body, data.size() - body);
  return array;
}

}  // namespace fewbit::testing
