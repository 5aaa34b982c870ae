#include "tests/server/certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "scheduler/check.h"

namespace fewbit::testing {
namespace {

template <auto kFree>
struct Free {
  template <class T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

Key NewKey() {
  Key key(EVP_EC_gen("P-256"));
  FEWBIT_CHECK(key != nullptr);
  return key;
}

void Extend(X509* certificate, int nid, const char* value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
  FEWBIT_CHECK(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

// Valid from an hour ago, for a day; not signed yet.
Certificate NewCertificate(const std::string& name, EVP_PKEY* key) {
  Certificate certificate(X509_new());
  X509_set_version(certificate.get(), X509_VERSION_3);
  uint32_t serial = 0;
  FEWBIT_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial)) == 1);
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate.get()), uint64_t{serial} + 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 86400);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

std::string Sign(X509* certificate, X509_NAME* issuer, EVP_PKEY* key) {
  X509_set_issuer_name(certificate, issuer);
  FEWBIT_CHECK(X509_sign(certificate, key, EVP_sha256()) > 0);
  Bio bio(BIO_new(BIO_s_mem()));
  FEWBIT_CHECK(PEM_write_bio_X509(bio.get(), certificate) == 1);
  return Text(bio.get());
}

}  // namespace

struct TestCa::Parts {
  Key key;
  Certificate certificate;
};

TestCa::TestCa(const std::string& name) : parts_(std::make_unique<Parts>()) {
  parts_->key = NewKey();
  parts_->certificate = NewCertificate(name, parts_->key.get());
  Extend(parts_->certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  certificate_ = Sign(parts_->certificate.get(), X509_get_subject_name(parts_->certificate.get()),
                      parts_->key.get());
}

TestCa::~TestCa() = default;

Pem TestCa::Issue(const std::string& name) const {
  const Key key = NewKey();
  const Certificate certificate = NewCertificate(name, key.get());
  Extend(certificate.get(), NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
  Extend(certificate.get(), NID_ext_key_usage, "serverAuth,clientAuth");
  Pem pem;
  pem.certificate =
      Sign(certificate.get(), X509_get_subject_name(parts_->certificate.get()), parts_->key.get());
  Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_PrivateKey(bio.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  pem.key = Text(bio.get());
  return pem;
}

std::string Encrypted(const Pem& pem) {
  Bio in(BIO_new_mem_buf(pem.key.data(), static_cast<int>(pem.key.size())));
  const Key key(PEM_read_bio_PrivateKey(in.get(), nullptr, nullptr, nullptr));
  Bio out(BIO_new(BIO_s_mem()));
  char passphrase[] = "secret";
  PEM_write_bio_PKCS8PrivateKey(out.get(), key.get(), EVP_aes_256_cbc(), passphrase,
                                static_cast<int>(std::strlen(passphrase)), nullptr, nullptr);
  return Text(out.get());
}

void ReplaceFile(const std::string& path, const std::string& content) {
  const std::string next = path + ".next";
  std::ofstream(next, std::ios::binary) << content;
  std::filesystem::rename(next, path);
}

}  // namespace fewbit::testing
