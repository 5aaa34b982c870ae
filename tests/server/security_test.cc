// Who may talk to the server, seen from real clients: TLS, client certificates, rotation.
#include <gmock/gmock.h>
#include <grpc/support/log.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/tls.h"
#include "tests/server/certificates.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class SecurityTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    gpr_set_log_function([](gpr_log_func_args*) {});  // of every refused handshake
  }
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/fewbit_security_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    const Pem server = ca_.Issue("server");
    options_.config.tls_cert = Write("tls.crt", server.certificate);
    options_.config.tls_key = Write("tls.key", server.key);
    options_.config.tls_refresh_seconds = 1;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = directory_ / name;
    ReplaceFile(path, content);
    return path;
  }

  // A connection of its own to a harness with TLS.
  static std::shared_ptr<grpc::Channel> Channel(const Harness& harness, const TestCa& ca,
                                                const Pem& client = {}) {
    grpc::SslCredentialsOptions tls;
    tls.pem_root_certs = ca.certificate();
    tls.pem_cert_chain = client.certificate;
    tls.pem_private_key = client.key;
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
    return grpc::CreateCustomChannel(harness.address(), grpc::SslCredentials(tls), arguments);
  }

  static grpc::StatusCode CodeOf(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    v1::GetModelInfoResponse info;
    return v1::GenerationService::NewStub(channel)->GetModelInfo(&context, {}, &info).error_code();
  }

  // Whether the server lets the client in within half a minute: gRPC tries again and again.
  static bool Reaches(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    v1::GetModelInfoResponse info;
    return v1::GenerationService::NewStub(channel)->GetModelInfo(&context, {}, &info).ok();
  }

  static void ExpectStreams(Harness& harness, const std::shared_ptr<grpc::Channel>& channel) {
    const auto stub = v1::GenerationService::NewStub(channel);
    const Collected all = Stream(*stub, harness.Saying(" the sun was high"));
    EXPECT_TRUE(all.status.ok()) << all.status.error_message();
    EXPECT_EQ(all.text, " the sun was high");
  }

  // Standard output and error of fewbit-client.
  static std::string RunClient(const Harness& harness, const std::string& flags) {
    FILE* pipe = popen(
        (FEWBIT_CLIENT_PROGRAM " --address=" + harness.address() + " " + flags + " 2>&1").c_str(),
        "r");
    std::string output;
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, n);
    pclose(pipe);
    return output;
  }

  std::string Refusal() const { return std::string(CheckTlsFiles(options_.config).message()); }

  std::filesystem::path directory_;
  const TestCa ca_{"our CA"};
  const TestCa stranger_{"another CA"};
  HarnessOptions options_;
};

TEST_F(SecurityTest, TlsWorksAndPlainTextDoesNot) {
  Harness harness(options_);
  ExpectStreams(harness, Channel(harness, ca_));
  EXPECT_EQ(CodeOf(harness.NewChannel()), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, AServerOfAnotherCaIsNotTrusted) {
  Harness harness(options_);
  EXPECT_EQ(CodeOf(Channel(harness, stranger_)), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, ClientCertificatesAreRequiredAndVerified) {
  const TestCa clients("the clients' CA");
  options_.config.tls_client_ca = Write("client-ca.crt", clients.certificate());
  Harness harness(options_);
  EXPECT_EQ(CodeOf(Channel(harness, ca_)), grpc::StatusCode::UNAVAILABLE) << "no certificate";
  EXPECT_EQ(CodeOf(Channel(harness, ca_, stranger_.Issue("mallory"))),
            grpc::StatusCode::UNAVAILABLE);
  ExpectStreams(harness, Channel(harness, ca_, clients.Issue("alice")));
}

TEST_F(SecurityTest, TheClientProgramSpeaksTls) {
  const TestCa clients("the clients' CA");
  options_.config.tls_client_ca = Write("client-ca.crt", clients.certificate());
  Harness harness(options_);
  const Pem alice = clients.Issue("alice");
  const std::string ca = " --tls_ca=" + Write("ca.crt", ca_.certificate());
  const std::string mine = " --tls_cert=" + Write("alice.crt", alice.certificate) +
                           " --tls_key=" + Write("alice.key", alice.key);
  EXPECT_THAT(RunClient(harness, "--info" + ca + mine), HasSubstr("demo"));
  EXPECT_THAT(RunClient(harness, "--info --tls_name=localhost" + ca + mine), HasSubstr("demo"));
  EXPECT_THAT(RunClient(harness, "--info --tls_name=fewbit.svc" + ca + mine),
              AllOf(HasSubstr("fewbit.svc is not in peer certificate"), HasSubstr("--tls_ca")));
  EXPECT_THAT(RunClient(harness, "--wait_ready=30 --info" + ca + mine), HasSubstr("demo"));
  EXPECT_THAT(RunClient(harness, "--info" + ca), Not(HasSubstr("demo")));
  EXPECT_THAT(RunClient(harness, "--info --tls_ca=/nowhere"), HasSubstr("--tls_ca=/nowhere"));
  EXPECT_THAT(RunClient(harness, "--info" + mine), HasSubstr("need --tls_ca"));
}

TEST_F(SecurityTest, RotatedFilesHoldForNewConnections) {
  const TestCa old_clients("the clients' CA"), new_clients("the clients' next CA");
  options_.config.tls_client_ca = Write("client-ca.crt", old_clients.certificate());
  Harness harness(options_);
  const Pem old_client = old_clients.Issue("alice"), new_client = new_clients.Issue("alice");
  const auto open = Channel(harness, ca_, old_client);
  ExpectStreams(harness, open);

  const TestCa next("our next CA");
  const Pem server = next.Issue("server");
  Write("tls.crt", server.certificate);
  Write("tls.key", server.key);
  Write("client-ca.crt", new_clients.certificate());
  EXPECT_TRUE(Reaches(Channel(harness, next, new_client)));
  EXPECT_EQ(CodeOf(Channel(harness, ca_, new_client)), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(CodeOf(Channel(harness, next, old_client)), grpc::StatusCode::UNAVAILABLE);
  ExpectStreams(harness, open);
}

// Whoever copies the files one after the other: once the second is there all is well again.
TEST_F(SecurityTest, AHalfDoneRotationEndsWithTheRest) {
  Harness harness(options_);
  const TestCa next("our next CA");
  const Pem server = next.Issue("server");
  Write("tls.crt", server.certificate);
  WaitFor([&] { return CodeOf(Channel(harness, ca_)) != grpc::StatusCode::OK; },
          "the certificate without its key");
  Write("tls.key", server.key);
  EXPECT_TRUE(Reaches(Channel(harness, next)));
}

TEST_F(SecurityTest, VanishedFilesLeaveTheLastOnes) {
  const TestCa clients("the clients' CA"), new_clients("the clients' next CA");
  options_.config.tls_client_ca = Write("client-ca.crt", clients.certificate());
  Harness harness(options_);
  std::filesystem::remove(options_.config.tls_cert);
  std::filesystem::remove(options_.config.tls_key);
  // That the new CA holds says that the files have been looked at.
  Write("client-ca.crt", new_clients.certificate());
  const Pem client = new_clients.Issue("alice");
  EXPECT_TRUE(Reaches(Channel(harness, ca_, client)));
}

TEST_F(SecurityTest, FilesThatAreWrongAreNamed) {
  const std::string no_file = directory_ / "nothing.crt";
  Config good = options_.config;
  EXPECT_TRUE(CheckTlsFiles(good).ok()) << Refusal();

  options_.config.tls_cert = no_file;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_cert=" + no_file), HasSubstr("No such file")));
  options_.config.tls_cert = Write("text.crt", "hello");
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_cert="), HasSubstr("no certificate in PEM")));
  options_.config = good;
  options_.config.tls_key = no_file;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_key=" + no_file), HasSubstr("No such file")));
  options_.config.tls_key = good.tls_cert;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_key="), HasSubstr("no private key in PEM")));
  const Pem other = ca_.Issue("server");
  options_.config.tls_key = Write("other.key", other.key);
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_key="), HasSubstr("is not the key of"),
                               HasSubstr("--tls_cert=" + good.tls_cert)));
  options_.config.tls_key = Write("encrypted.key", Encrypted(other));
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_key="), HasSubstr("without a passphrase")));
  options_.config = good;
  options_.config.tls_client_ca = no_file;
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("--tls_client_ca=" + no_file), HasSubstr("No such file")));
}

}  // namespace
}  // namespace fewbit::testing
