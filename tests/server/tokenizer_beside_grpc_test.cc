// SentencePiece and gRPC in one process: with Debian's shared libraries that crashes before main
// (server/sentencepiece.sh).
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/support/byte_buffer.h>

#include "gtest/gtest.h"
#include "server/tokenizer.h"

namespace fewbit {
namespace {

TEST(TokenizerBesideGrpcTest, TokenizesWhileACallRuns) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::CallbackGenericService
      other_calls;  // answers UNIMPLEMENTED; a server needs a service of its own
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&other_calls);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);

  grpc::GenericStub stub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const grpc::Slice empty;  // an empty HealthCheckRequest asks for the server as a whole
  const grpc::ByteBuffer request(&empty, 1);
  const auto call =
      stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);

  const auto tokenizer = Tokenizer::Load(FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m", 8192);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto tokens = (*tokenizer)->Encode("Both at once.", true);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ((*tokenizer)->Decode(*tokens), "Both at once.");

  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_TRUE(ok);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.Length(), 2u);  // field 1 = SERVING
}

}  // namespace
}  // namespace fewbit
