// TLS of the gRPC port, from PEM files that may be replaced while the server runs.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config.h"

namespace fewbit {

// Reads the files of --tls_cert, --tls_key and --tls_client_ca. INVALID_ARGUMENT names flag, file
// and reason: it cannot be read, holds no certificate or no key that needs no passphrase, or the
// key is another certificate's. OK without TLS.
absl::Status CheckTlsFiles(const Config& config);

// Plain text without --tls_cert. With it, TLS 1.2 or later with that certificate, and with
// --tls_client_ca only for clients whose certificate that CA signed. gRPC looks at the files every
// --tls_refresh_seconds; new connections get what it finds there, open ones stay. Files that cannot
// be read then leave the last ones in place. Fails as CheckTlsFiles.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const Config& config);

}  // namespace fewbit
