#include "server/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace fewbit {
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

absl::Status Wrong(absl::string_view flag, const std::string& file, absl::string_view reason) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", file, ": ", reason));
}

absl::StatusOr<Bio> Open(absl::string_view flag, const std::string& file) {
  errno = 0;
  Bio bio(BIO_new_file(file.c_str(), "r"));
  if (bio == nullptr) return Wrong(flag, file, std::strerror(errno));
  return bio;
}

// The first certificate in the file: the server's own, or a CA's.
absl::StatusOr<Certificate> ReadCertificate(absl::string_view flag, const std::string& file) {
  absl::StatusOr<Bio> bio = Open(flag, file);
  if (!bio.ok()) return bio.status();
  Certificate certificate(PEM_read_bio_X509(bio->get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return Wrong(flag, file, "holds no certificate in PEM");
  return certificate;
}

// Instead of OpenSSL's own, which would ask at the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

absl::StatusOr<Key> ReadKey(absl::string_view flag, const std::string& file) {
  absl::StatusOr<Bio> bio = Open(flag, file);
  if (!bio.ok()) return bio.status();
  Key key(PEM_read_bio_PrivateKey(bio->get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return Wrong(flag, file, "holds no private key in PEM without a passphrase");
  return key;
}

}  // namespace

absl::Status CheckTlsFiles(const Config& config) {
  if (config.tls_cert.empty()) return absl::OkStatus();
  const absl::StatusOr<Certificate> certificate = ReadCertificate("tls_cert", config.tls_cert);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<Key> key = ReadKey("tls_key", config.tls_key);
  if (!key.ok()) return key.status();
  if (X509_check_private_key(certificate->get(), key->get()) != 1) {
    return Wrong("tls_key", config.tls_key,
                 absl::StrCat("is not the key of the certificate in --tls_cert=", config.tls_cert));
  }
  if (config.tls_client_ca.empty()) return absl::OkStatus();
  return ReadCertificate("tls_client_ca", config.tls_client_ca).status();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const Config& config) {
  if (config.tls_cert.empty()) return grpc::InsecureServerCredentials();
  const absl::Status status = CheckTlsFiles(config);
  if (!status.ok()) return status;
  using grpc::experimental::FileWatcherCertificateProvider;
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<FileWatcherCertificateProvider>(
          config.tls_key, config.tls_cert, config.tls_client_ca,
          static_cast<unsigned int>(config.tls_refresh_seconds)));
  options.watch_identity_key_cert_pairs();
  if (!config.tls_client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

}  // namespace fewbit
