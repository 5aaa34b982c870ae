// Certificates for tests, made on the spot.
#pragma once

#include <memory>
#include <string>

namespace fewbit::testing {

struct Pem {
  std::string certificate;
  std::string key;
};

// A CA of its own: no other one's certificates pass for its.
class TestCa {
 public:
  explicit TestCa(const std::string& name);
  ~TestCa();

  const std::string& certificate() const { return certificate_; }  // PEM
  // For localhost and 127.0.0.1, as server and as client.
  Pem Issue(const std::string& name) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
  std::string certificate_;
};

// The key behind a passphrase.
std::string Encrypted(const Pem& pem);

// Replaces the file at once, as whoever rotates certificates should.
void ReplaceFile(const std::string& path, const std::string& content);

}  // namespace fewbit::testing
