// Who may talk to the server, seen from real clients: TLS, client certificates, rotation, API keys,
// limits.
#include <gmock/gmock.h>
#include <grpc/support/log.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/api_keys.h"
#include "server/tenants.h"
#include "server/tls.h"
#include "tests/server/certificates.h"
#include "tests/server/server_harness.h"
#include "tests/server/wire.pb.h"

namespace fewbit::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
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

// printf %s KEY | sha256sum, of "key of acme" and "key of globex".
constexpr char kAcme[] = "fb59bed05bd29dd4accc0ff9ecec97b417f3c1a13a5a93705cdbefca2275c00a";
constexpr char kGlobex[] = "1250732ecab898c6b69a8fd992ddd66c66be80154582611bc62de538f656139e";

class ApiKeysTest : public SecurityTest {
 protected:
  void SetUp() override {
    SecurityTest::SetUp();
    options_.config.tls_cert = options_.config.tls_key = "";
    options_.config.api_keys_file =
        Write("api-keys", absl::StrCat("# ours\n\nacme:", kAcme, "\nglobex:", kGlobex, "\n"));
  }

  // Sends every RPC with this metadata (none if empty): the codes they end with.
  static std::vector<grpc::Status> CallAll(Harness& harness, const std::string& authorization) {
    std::vector<grpc::Status> all;
    v1::GenerationService::Stub& stub = harness.stub();
    const auto call = [&](const auto& send) {
      grpc::ClientContext context;
      if (!authorization.empty()) context.AddMetadata("authorization", authorization);
      context.AddMetadata("x-tenant-id", "mallory");
      all.push_back(send(&context));
    };
    call([&](grpc::ClientContext* context) {
      v1::GenerateResponse response;
      return stub.Generate(context, harness.Saying(" x"), &response);
    });
    call([&](grpc::ClientContext* context) {
      return Stream(stub, harness.Saying(" x"), context).status;
    });
    call([&](grpc::ClientContext* context) {
      v1::TokenizeRequest request;
      v1::TokenizeResponse response;
      request.set_text("x");
      return stub.Tokenize(context, request, &response);
    });
    call([&](grpc::ClientContext* context) {
      v1::DetokenizeRequest request;
      v1::DetokenizeResponse response;
      request.add_ids(5);
      return stub.Detokenize(context, request, &response);
    });
    call([&](grpc::ClientContext* context) {
      v1::GetModelInfoResponse response;
      return stub.GetModelInfo(context, {}, &response);
    });
    call([&](grpc::ClientContext* context) {
      v1::AbortRequest request;
      v1::AbortResponse response;
      request.set_request_id("x");
      return stub.Abort(context, request, &response);
    });
    return all;
  }

  std::string LoadError(const std::string& content) {
    return std::string(ApiKeys::Load(Write("keys", content)).status().message());
  }
};

TEST_F(ApiKeysTest, EveryRpcWantsAKey) {
  Harness harness(options_);
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer key of nobody", "Bearer key of acme ",
                            "Basic key of acme", kAcme}) {
    for (const grpc::Status& status : CallAll(harness, wrong)) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << wrong;
      EXPECT_THAT(status.error_message(), HasSubstr("API key"));
      EXPECT_THAT(status.error_message(), Not(HasSubstr("acme")));
    }
  }
  EXPECT_EQ(harness.Count(Outcome::kUnauthenticated), 7u * 2u) << "Generate and GenerateStream";
  for (const char* right : {"Bearer key of acme", "bearer key of globex"}) {
    for (const grpc::Status& status : CallAll(harness, right)) {
      EXPECT_TRUE(status.ok()) << status.error_message();
    }
  }
}

TEST_F(ApiKeysTest, TheTenantIsTheKeys) {
  Harness harness(options_);
  CallAll(harness, "Bearer key of acme");
  harness.ExpectIdle();
  std::vector<std::string> names;
  for (const TenantUsage& usage : harness.server().stats().tenants.Read()) {
    if (usage.generated_delivered > 0) names.push_back(usage.name);
  }
  EXPECT_THAT(names, ElementsAre("acme"));
}

TEST_F(ApiKeysTest, AChangedFileCountsFromTheNextCallOn) {
  Harness harness(options_);
  const auto code = [&](const std::string& key) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key);
    v1::GetModelInfoResponse response;
    return harness.stub().GetModelInfo(&context, {}, &response).error_code();
  };
  EXPECT_EQ(code("key of acme"), grpc::StatusCode::OK);
  const std::string path = options_.config.api_keys_file;
  ReplaceFile(path, absl::StrCat("globex:", kGlobex, "\n"));
  EXPECT_EQ(code("key of acme"), grpc::StatusCode::UNAUTHENTICATED) << "taken away";
  EXPECT_EQ(code("key of globex"), grpc::StatusCode::OK);
  ReplaceFile(path, "garbage\n");
  EXPECT_EQ(code("key of globex"), grpc::StatusCode::OK) << "the last good ones stay";
  EXPECT_EQ(code("key of acme"), grpc::StatusCode::UNAUTHENTICATED);
  std::filesystem::remove(path);
  EXPECT_EQ(code("key of globex"), grpc::StatusCode::OK);
  // As Kubernetes replaces a Secret: a link that suddenly leads elsewhere.
  std::filesystem::create_symlink(Write("next", absl::StrCat("acme:", kAcme, "\n")), path);
  EXPECT_EQ(code("key of acme"), grpc::StatusCode::OK);
  EXPECT_EQ(code("key of globex"), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(ApiKeysTest, TheClientProgramSendsAKey) {
  Harness harness(options_);
  const std::string right = " --api_key_file=" + Write("acme", "key_of_acme\n");
  EXPECT_THAT(RunClient(harness, "--info"), HasSubstr("UNAUTHENTICATED: this server wants"));
  EXPECT_THAT(RunClient(harness, "--info" + right), HasSubstr("UNAUTHENTICATED: the API key"));
  Write("api-keys",
        absl::StrCat("acme:", "9d2ae58469e8393d2602d375900572939b70d1cc42b924dfaebb49b1180e8383"));
  Harness other(options_);
  EXPECT_THAT(RunClient(other, "--info" + right), HasSubstr("demo"));
  EXPECT_THAT(RunClient(other, "--concurrency=2 --requests=4 --prompt_tokens=4" + right),
              HasSubstr("4 finished, 0 rejected"));
  EXPECT_THAT(RunClient(other, "--wait_ready=30 --info"), HasSubstr("UNAUTHENTICATED"))
      << "health needs no key";
  EXPECT_THAT(RunClient(other, "--info --api_key_file=/nowhere"), HasSubstr("/nowhere"));
}

TEST_F(ApiKeysTest, BadLinesAreNamed) {
  const std::string hash = kAcme;
  const struct {
    std::string content, said;
  } cases[] = {
      {"", "holds no key"},
      {"# nothing\n", "holds no key"},
      {"a:" + hash + "\nsecret\n", "line 2: is not TENANT:SHA256"},
      {":" + hash, "line 1: is not TENANT:SHA256"},
      {"a b:" + hash, "line 1: the tenant's name"},
      {"\na:" + hash.substr(1), "line 2: behind the colon"},
      {"a:" + hash.substr(1) + "g", "line 1: behind the colon"},
      {"a:" + hash + "\nb:" + hash, "line 2: an earlier line"},
  };
  for (const auto& test : cases) {
    const std::string error = LoadError(test.content);
    EXPECT_THAT(error, AllOf(HasSubstr("--api_keys_file="), HasSubstr(test.said)));
    EXPECT_THAT(error, Not(HasSubstr("secret")));
  }
  std::string many;
  for (size_t i = 0; i <= ApiKeys::kMaxKeys; ++i) {
    absl::StrAppend(&many, "a:", absl::Hex(i, absl::kZeroPad16), hash.substr(16), "\n");
  }
  EXPECT_THAT(LoadError(many), HasSubstr("line 1025: more than 1024 keys"));
  EXPECT_THAT(std::string(ApiKeys::Load("/nowhere").status().message()),
              AllOf(HasSubstr("--api_keys_file=/nowhere"), HasSubstr("No such file")));
}

TEST(LimitsTest, MetadataBeyondTheLimitIsRefused) {
  HarnessOptions options;
  options.config.max_metadata_kb = 4;
  Harness harness(options);
  const auto code = [&](size_t size) {
    grpc::ClientContext context;
    context.AddMetadata("x-much", std::string(size, 'x'));
    v1::GetModelInfoResponse info;
    return harness.stub().GetModelInfo(&context, {}, &info).error_code();
  };
  EXPECT_EQ(code(2000), grpc::StatusCode::OK);
  EXPECT_EQ(code(5000), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(LimitsTest, ReflectionCanBeSwitchedOff) {
  const auto code = [](bool reflection) {
    HarnessOptions options;
    options.config.reflection = reflection;
    Harness harness(options);
    grpc::ClientContext context;
    const grpc::internal::RpcMethod method(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        grpc::internal::RpcMethod::NORMAL_RPC, harness.channel());
    ReflectionRequest request;
    ReflectionResponse response;
    request.set_list_services("*");
    return grpc::internal::BlockingUnaryCall(harness.channel().get(), method, &context, request,
                                             &response)
        .error_code();
  };
  EXPECT_EQ(code(true), grpc::StatusCode::OK);
  EXPECT_EQ(code(false), grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace fewbit::testing
