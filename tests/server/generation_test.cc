// What responses say: text, tokens, details and endings, over a real channel.
#include <gmock/gmock.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "server/build_info.h"
#include "server/utf8.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

grpc::Status Generate(Harness& harness, const v1::GenerateRequest& request,
                      v1::GenerateResponse* response) {
  grpc::ClientContext context;
  return harness.stub().Generate(&context, request, response);
}

TEST(GenerationTest, StreamsTextAndIdsInOrderAndEndsWithUsage) {
  Harness harness;
  const std::string text = " there was a little boy, and he was happy.";
  const Collected stream = Stream(harness.stub(), harness.Saying(text));
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, text);
  std::vector<int32_t> expected;
  for (TokenId id : Tokens(text)) expected.push_back(ToInt(id));
  expected.push_back(2);
  EXPECT_EQ(stream.token_ids, expected);

  const v1::PromptInfo& prompt = stream.messages.front().prompt();
  EXPECT_EQ(prompt.prompt_tokens(), 1 + Tokens("Once upon a time").size());
  EXPECT_EQ(prompt.seed(), 1u);
  EXPECT_FALSE(prompt.request_id().empty());
  EXPECT_EQ(stream.last.finish_reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(stream.last.matched_stop_token_id(), 2);
  EXPECT_EQ(stream.last.usage().prompt_tokens(), prompt.prompt_tokens());
  EXPECT_EQ(stream.last.usage().generated_tokens(), expected.size());
  for (size_t i = 0; i < stream.messages.size(); ++i) {
    EXPECT_EQ(stream.messages[i].has_prompt(), i == 0);
    EXPECT_EQ(stream.messages[i].has_usage(), i + 1 == stream.messages.size());
    EXPECT_EQ(stream.messages[i].finish_reason() != v1::FINISH_REASON_UNSPECIFIED,
              i + 1 == stream.messages.size());
  }
  harness.ExpectIdle();
  EXPECT_EQ(harness.Count(Outcome::kEos), 1u);
}

TEST(GenerationTest, EveryTokenCanBeAMessageOfItsOwn) {
  Harness harness({.gate_closed = true});
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(" the sun was high"));
  v1::GenerateResponse message;
  for (TokenId id : Tokens(" the sun was high")) {
    harness.executor().AllowSteps(1);
    ASSERT_TRUE(reader->Read(&message));
    EXPECT_THAT(message.token_ids(), ElementsAre(ToInt(id)));
  }
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(reader.get()).status.ok());
}

TEST(GenerationTest, UnaryGivesAllOfIt) {
  Harness harness;
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, harness.Saying(" the sun was high"), &response).ok());
  EXPECT_EQ(response.text(), " the sun was high");
  EXPECT_EQ(response.token_ids_size(), static_cast<int>(Tokens(" the sun was high").size()) + 1);
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_EOS);
  EXPECT_TRUE(response.has_prompt());
  EXPECT_TRUE(response.has_usage());
}

TEST(GenerationTest, MaxNewTokensEndsWithLength) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying(" the sun was high and the day was long");
  request.mutable_stopping()->set_max_new_tokens(3);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 3);
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(response.has_matched_stop_token_id());
}

TEST(GenerationTest, IgnoreEosRunsToTheLimit) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying(" hi");
  request.mutable_stopping()->set_max_new_tokens(9);
  request.mutable_stopping()->set_ignore_eos(true);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 9);
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(GenerationTest, StopTokenEndsWithoutItsText) {
  Harness harness;
  const std::vector<TokenId> ids = Tokens(" the sun was high");
  v1::GenerateRequest request = harness.Saying(" the sun was high");
  request.mutable_stopping()->add_stop_token_ids(ToInt(ids[2]));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, request, &response).ok());
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(response.matched_stop_token_id(), ToInt(ids[2]));
  EXPECT_EQ(response.token_ids_size(), 3);
  EXPECT_EQ(response.text(), " the sun");
}

TEST(GenerationTest, BytesOfACharacterWaitForTheRest) {
  Harness harness({.gate_closed = true});
  const std::string text =
      " a \xF0\x9F\x90\xBB\xF0\x9F\x8C\xB2 b";  // bear, tree: four byte tokens each
  const std::vector<TokenId> ids = Tokens(text);
  ASSERT_GT(ids.size(), 8u) << "the characters must be split for this test to say anything";
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(text));
  std::string seen;
  size_t empty = 0;
  v1::GenerateResponse message;
  for (size_t i = 0; i < ids.size(); ++i) {
    harness.executor().AllowSteps(1);
    ASSERT_TRUE(reader->Read(&message));
    EXPECT_TRUE(IsValidUtf8(message.text())) << i;
    EXPECT_EQ(message.token_ids_size(), 1);
    if (message.text().empty()) ++empty;
    seen += message.text();
  }
  EXPECT_GE(empty, 6u) << "three of each four bytes wait";
  EXPECT_EQ(seen, text);
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(reader.get()).status.ok());
}

TEST(GenerationTest, AnUnfinishedCharacterEndsAsReplacement) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying("");
  std::vector<TokenId> ids = Tokens(" a\xF0\x9F\x90\xBB");
  ids.pop_back();
  harness.Script(request.sampling().seed(), ids);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, request, &response).ok());
  EXPECT_TRUE(IsValidUtf8(response.text()));
  EXPECT_THAT(response.text(), HasSubstr(std::string(kReplacementCharacter)));
}

TEST(GenerationTest, AStopStringAcrossTokensNeverLeaks) {
  Harness harness({.gate_closed = true});
  const std::string text = " one two three four";
  v1::GenerateRequest request = harness.Saying(text);
  request.mutable_stopping()->add_stop_strings("two thr");
  request.mutable_stopping()->add_stop_strings("never");
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, request);
  harness.executor().OpenGate();
  const Collected stream = Collect(reader.get());
  ASSERT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.text, " one ");
  EXPECT_EQ(stream.last.finish_reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(stream.last.matched_stop_string(), "two thr");
  std::string so_far;
  for (const v1::GenerateResponse& message : stream.messages) {
    so_far += message.text();
    EXPECT_EQ(std::string(" one ").rfind(so_far, 0), 0u) << "leaked: " << so_far;
  }
  harness.ExpectIdle();
  const ServerStats& stats = harness.server().stats();
  EXPECT_EQ(stats.generated_tokens_delivered.load(), stream.last.usage().generated_tokens());
}

TEST(GenerationTest, AStopStringCanStay) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying(" one two three four");
  request.mutable_stopping()->add_stop_strings("two");
  request.mutable_stopping()->set_include_stop_string(true);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, request, &response).ok());
  EXPECT_EQ(response.text(), " one two");
}

TEST(GenerationTest, NothingStopsBeforeMinNewTokens) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying(" one two three four one two");
  request.mutable_stopping()->add_stop_strings("two");
  const size_t before = Tokens(" one two three four").size();
  request.mutable_stopping()->set_min_new_tokens(static_cast<uint32_t>(before));
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(harness, request, &response).ok());
  EXPECT_EQ(response.text(), " one two three four one ");
}

TEST(GenerationTest, EchoPutsThePromptInFront) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying(" there was");
  request.mutable_response()->set_echo(true);
  const Collected text = Stream(harness.stub(), request);
  EXPECT_EQ(text.text, "Once upon a time there was");

  request.clear_text();
  for (TokenId id : Tokens("Once upon a time")) request.mutable_token_ids()->add_ids(ToInt(id));
  EXPECT_EQ(Stream(harness.stub(), request).text, "Once upon a time there was");

  request.set_truncate_prompt_tokens(1);
  const Collected cut = Stream(harness.stub(), request);
  EXPECT_EQ(cut.messages.front().prompt().prompt_tokens(), 1u);
  EXPECT_EQ(cut.messages.front().prompt().truncated_tokens(),
            Tokens("Once upon a time").size() - 1);
  EXPECT_EQ(cut.text, "time there was");
}

TEST(GenerationTest, LogprobsComeWithEveryToken) {
  Harness harness;
  v1::GenerateRequest request = harness.Saying(" the sun");
  request.mutable_response()->set_top_logprobs(2);
  request.mutable_response()->set_prompt_logprobs(true);
  const Collected stream = Stream(harness.stub(), request);
  ASSERT_TRUE(stream.status.ok());
  int details = 0;
  int prompt_details = 0;
  for (const v1::GenerateResponse& message : stream.messages) {
    EXPECT_EQ(message.details_size(), message.token_ids_size());
    for (int i = 0; i < message.details_size(); ++i, ++details) {
      const v1::TokenDetail& detail = message.details(i);
      EXPECT_EQ(detail.token_id(), message.token_ids(i));
      EXPECT_EQ(detail.piece(), DemoTokenizer().Piece(TokenId{detail.token_id()}));
      EXPECT_LE(detail.logprob(), 0.0f);
      EXPECT_EQ(detail.rank(), 1u);
      ASSERT_EQ(detail.top_size(), 2);
      EXPECT_EQ(detail.top(0).token_id(), detail.token_id());
    }
    if (message.prompt_details_size() > 0) {
      EXPECT_EQ(details, message.details_size()) << "scores of the prompt come first";
    }
    prompt_details += message.prompt_details_size();
  }
  EXPECT_EQ(details, static_cast<int>(stream.token_ids.size()));
  const auto prompt_tokens = static_cast<int>(stream.messages.front().prompt().prompt_tokens());
  EXPECT_EQ(prompt_details, prompt_tokens - 1) << "all but the first";

  const Collected plain = Stream(harness.stub(), harness.Saying(" the sun"));
  for (const v1::GenerateResponse& message : plain.messages) {
    EXPECT_EQ(message.details_size() + message.prompt_details_size(), 0);
  }
}

TEST(GenerationTest, ADrawnSeedIsEchoedAndReproduces) {
  Harness harness;
  v1::GenerateRequest request;
  request.set_text("x");
  request.mutable_stopping()->set_max_new_tokens(8);
  const Collected first = Stream(harness.stub(), request);
  const Collected second = Stream(harness.stub(), request);
  const uint64_t seed = first.messages.front().prompt().seed();
  EXPECT_NE(seed, second.messages.front().prompt().seed());
  EXPECT_NE(first.messages.front().prompt().request_id(),
            second.messages.front().prompt().request_id());
  request.mutable_sampling()->set_seed(seed);
  EXPECT_EQ(Stream(harness.stub(), request).token_ids, first.token_ids);
}

TEST(GenerationTest, TimeLimitEndsWithWhatThereIs) {
  Harness harness({.step_time = absl::Milliseconds(5)});
  v1::GenerateRequest request = harness.Saying(" x");
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->set_max_new_tokens(4000);
  request.mutable_stopping()->set_time_limit_ms(60);
  const Collected stream = Stream(harness.stub(), request);
  ASSERT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.last.finish_reason(), v1::FINISH_REASON_TIME_LIMIT);
  EXPECT_LT(stream.token_ids.size(), 4000u);
  EXPECT_EQ(harness.Count(Outcome::kTimeLimit), 1u);
}

TEST(GenerationTest, ManyStreamsAtOnceStayApart) {
  Harness harness;
  constexpr int kStreams = 48;
  std::vector<grpc::ClientContext> contexts(kStreams);
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  std::vector<std::string> texts;
  for (int i = 0; i < kStreams; ++i) {
    texts.push_back(" this is number " + std::to_string(i) + " of many, and it goes on");
    readers.push_back(harness.stub().GenerateStream(&contexts[i], harness.Saying(texts[i])));
  }
  for (int i = 0; i < kStreams; ++i) {
    const Collected stream = Collect(readers[i].get());
    EXPECT_TRUE(stream.status.ok());
    EXPECT_EQ(stream.text, texts[i]);
  }
  harness.ExpectIdle();
}

TEST(GenerationTest, AFailedStepIsInternalWithTheIdAndServingStops) {
  Harness harness;
  harness.executor().FailNextStep(absl::InternalError("device lost"));
  v1::GenerateRequest request = harness.Saying(" x");
  request.set_request_id("unlucky");
  const Collected stream = Stream(harness.stub(), request);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("unlucky"));
  EXPECT_EQ(harness.Count(Outcome::kInternal), 1u);
}

TEST(GenerationTest, ARowThatFailsEndsItsRequestAlone) {
  Harness harness;
  harness.executor().FailRowsOf(RequestId{1});  // the first call
  const Collected failed = Stream(harness.stub(), harness.Saying(" x"));
  EXPECT_EQ(failed.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(Stream(harness.stub(), harness.Saying(" the sun")).text, " the sun");
  harness.ExpectIdle();
}

TEST(TokenizeTest, RoundTripAndBos) {
  Harness harness;
  v1::TokenizeRequest request;
  request.set_text("Once upon a time");
  v1::TokenizeResponse with_bos, without_bos;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(harness.stub().Tokenize(&context, request, &with_bos).ok());
  }
  EXPECT_EQ(with_bos.ids(0), 1) << "as GenerateRequest.text does";
  EXPECT_EQ(with_bos.ids_size(), with_bos.pieces_size());
  request.set_add_bos(false);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(harness.stub().Tokenize(&context, request, &without_bos).ok());
  }
  EXPECT_EQ(without_bos.ids_size(), with_bos.ids_size() - 1);

  v1::DetokenizeRequest back;
  *back.mutable_ids() = with_bos.ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext context;
  ASSERT_TRUE(harness.stub().Detokenize(&context, back, &text).ok());
  EXPECT_EQ(text.text(), "Once upon a time");
}

TEST(TokenizeTest, RefusesIdsOutsideTheVocabulary) {
  Harness harness;
  v1::DetokenizeRequest request;
  request.add_ids(8192);
  v1::DetokenizeResponse response;
  grpc::ClientContext context;
  const grpc::Status status = harness.stub().Detokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("ids[0] is 8192"));
}

TEST(ModelInfoTest, TellsWhatIsServed) {
  Harness harness;
  v1::GetModelInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(harness.stub().GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.name(), "demo");
  EXPECT_EQ(info.vocab_size(), 8192u);
  EXPECT_EQ(info.max_context(), 4096u);
  EXPECT_EQ(info.kv_blocks(), 4096u);
  EXPECT_EQ(info.device(), "fake");
  EXPECT_EQ(info.server_version(), ThisBuild().version);
}

grpc::Status SendBytes(Harness& harness, const char* method, const std::string& bytes) {
  grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  const grpc::internal::RpcMethod rpc(method, grpc::internal::RpcMethod::NORMAL_RPC,
                                      harness.channel());
  return grpc::internal::BlockingUnaryCall(harness.channel().get(), rpc, &context, request,
                                           &response);
}

TEST(InvalidRequestTest, InvalidUtf8IsNamed) {
  Harness harness;
  const grpc::Status status = SendBytes(harness, "/fewbit.v1.GenerationService/Generate",
                                        std::string("\x0A\x03"
                                                    "a\xFFz"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "text is not valid UTF-8 at byte 1 of 3");
  EXPECT_FALSE(status.error_details().empty());
  const grpc::Status tokenize =
      SendBytes(harness, "/fewbit.v1.GenerationService/Tokenize", std::string("\x0A\x01\xC0"));
  EXPECT_EQ(tokenize.error_message(), "text is not valid UTF-8 at byte 0 of 1");
  const grpc::Status garbage =
      SendBytes(harness, "/fewbit.v1.GenerationService/Abort", std::string("\xFF\xFF\xFF"));
  EXPECT_EQ(garbage.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(harness.Count(Outcome::kInvalid), 1u) << "only Generate counts here";
}

TEST(InvalidRequestTest, EachIsRefusedWithCodeAndText) {
  Harness harness({.max_context = 128});
  const struct {
    std::function<void(v1::GenerateRequest*)> spoil;
    grpc::StatusCode code;
    const char* said;
  } cases[] = {
      {[](auto* r) { r->mutable_token_ids(); }, grpc::StatusCode::INVALID_ARGUMENT, "0 tokens"},
      {[](auto* r) {
         for (int i = 0; i < 128; ++i) r->mutable_token_ids()->add_ids(5);
       },
       grpc::StatusCode::INVALID_ARGUMENT, "prompt of 128 tokens; the context has 128"},
      {[](auto* r) {
         std::string text;
         for (int i = 0; i < 300; ++i) text += " boy";
         r->set_text(text);
       },
       grpc::StatusCode::INVALID_ARGUMENT, "the context has 128"},
      {[](auto* r) { r->mutable_token_ids()->add_ids(8192); }, grpc::StatusCode::INVALID_ARGUMENT,
       "[0, 8192)"},
      {[](auto* r) { r->mutable_sampling()->set_temperature(-1); },
       grpc::StatusCode::INVALID_ARGUMENT, "sampling.temperature is -1"},
      {[](auto* r) { r->set_model("gpt"); }, grpc::StatusCode::NOT_FOUND, "\"gpt\""},
  };
  for (const auto& test : cases) {
    v1::GenerateRequest request = harness.Saying(" x");
    test.spoil(&request);
    v1::GenerateResponse response;
    const grpc::Status unary = Generate(harness, request, &response);
    const grpc::Status streamed = Stream(harness.stub(), request).status;
    EXPECT_EQ(unary.error_code(), test.code) << test.said;
    EXPECT_THAT(unary.error_message(), HasSubstr(test.said));
    EXPECT_EQ(streamed.error_code(), test.code);
    EXPECT_EQ(streamed.error_message(), unary.error_message());
  }
  harness.ExpectIdle();
  EXPECT_EQ(harness.executor().steps(), 0u) << "nothing refused ever ran";
  EXPECT_EQ(harness.Count(Outcome::kInvalid), 10u);
  EXPECT_EQ(harness.Count(Outcome::kUnknownModel), 2u);
}

}  // namespace
}  // namespace fewbit::testing
