#include "server/request_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "fewbit/internal/status_details.pb.h"

namespace fewbit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

ServedModel Model() {
  ServedModel model;
  model.name = "demo";
  model.spec.vocab_size = 1000;
  model.spec.eos = {TokenId{2}};
  model.device.max_context = 64;
  model.default_max_new_tokens = 16;
  model.default_sampling.temperature = 0.75f;
  model.default_sampling.top_k = 40;
  model.default_sampling.top_p = 0.9f;
  return model;
}

v1::GenerateRequest Good() {
  v1::GenerateRequest request;
  request.set_text("hello");
  return request;
}

absl::StatusOr<GenerateSpec> Decode(v1::GenerateRequest request) {
  return DecodeGenerateRequest(Model(), std::move(request), 77);
}

TEST(RequestCodecTest, UnsetFieldsTakeTheModelsDefaults) {
  const auto spec = Decode(Good());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->is_text);
  EXPECT_EQ(spec->text, "hello");
  EXPECT_EQ(spec->sampling.temperature, 0.75f);
  EXPECT_EQ(spec->sampling.top_k, 40);
  EXPECT_EQ(spec->sampling.top_p, 0.9f);
  EXPECT_EQ(spec->sampling.min_p, 0.0f);
  EXPECT_EQ(spec->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(spec->sampling.seed, 77u);
  EXPECT_EQ(spec->time_limit, absl::InfiniteDuration());
}

TEST(RequestCodecTest, EveryFieldArrives) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  request.mutable_token_ids()->add_ids(999);
  auto* sampling = request.mutable_sampling();
  sampling->set_temperature(0);
  sampling->set_top_k(5000);
  sampling->set_top_p(1);
  sampling->set_min_p(0.25f);
  sampling->set_repetition_penalty(1.5f);
  sampling->set_presence_penalty(-2);
  sampling->set_frequency_penalty(2);
  sampling->set_seed(0);
  (*sampling->mutable_logit_bias())[7] = -100;
  (*sampling->mutable_logit_bias())[3] = 100;
  auto* stopping = request.mutable_stopping();
  stopping->set_max_new_tokens(10);
  stopping->set_min_new_tokens(4);
  stopping->add_stop_strings("end");
  stopping->add_stop_token_ids(9);
  stopping->set_ignore_eos(true);
  stopping->set_include_stop_string(true);
  stopping->set_time_limit_ms(1500);
  request.mutable_response()->set_echo(true);
  request.mutable_response()->set_top_logprobs(3);
  request.mutable_response()->set_prompt_logprobs(true);
  request.set_request_id("mine 1");
  request.set_model("demo");
  request.set_truncate_prompt_tokens(12);

  const auto spec = Decode(request);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_FALSE(spec->is_text);
  EXPECT_THAT(spec->token_ids, ElementsAre(TokenId{5}, TokenId{999}));
  EXPECT_EQ(spec->sampling.temperature, 0.0f);
  EXPECT_EQ(spec->sampling.top_k, 1000) << "more than the vocabulary is the vocabulary";
  EXPECT_EQ(spec->sampling.top_p, 1.0f);
  EXPECT_EQ(spec->sampling.min_p, 0.25f);
  EXPECT_EQ(spec->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(spec->sampling.presence_penalty, -2.0f);
  EXPECT_EQ(spec->sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(spec->sampling.seed, 0u) << "a seed of 0 is a seed";
  EXPECT_THAT(spec->sampling.logit_bias,
              ElementsAre(std::pair(TokenId{3}, 100.0f), std::pair(TokenId{7}, -100.0f)));
  EXPECT_EQ(spec->max_new_tokens, 10);
  EXPECT_EQ(spec->output.min_new_tokens, 4);
  EXPECT_THAT(spec->output.stop_strings, ElementsAre("end"));
  EXPECT_THAT(spec->output.stop_token_ids, ElementsAre(TokenId{9}));
  EXPECT_TRUE(spec->ignore_eos);
  EXPECT_TRUE(spec->output.include_stop_string);
  EXPECT_EQ(spec->time_limit, absl::Milliseconds(1500));
  EXPECT_TRUE(spec->output.echo);
  EXPECT_TRUE(spec->output.logprobs) << "implied by top_logprobs";
  EXPECT_EQ(spec->output.num_top_logprobs, 3);
  EXPECT_TRUE(spec->output.prompt_logprobs);
  EXPECT_EQ(spec->request_id, "mine 1");
  EXPECT_EQ(spec->truncate_prompt_tokens, 12);
}

struct Refusal {
  std::function<void(v1::GenerateRequest*)> spoil;
  std::string field;
  std::string value;
  std::string limit;
};

// The message has field, value and limit, and the BadRequest detail names the field.
void ExpectRefused(const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    v1::GenerateRequest request = Good();
    refusal.spoil(&request);
    const absl::Status status = Decode(request).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << refusal.field;
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(refusal.field));
    EXPECT_THAT(message, HasSubstr(refusal.value));
    EXPECT_THAT(message, HasSubstr(refusal.limit));
    const auto payload = status.GetPayload("type.googleapis.com/google.rpc.BadRequest");
    ASSERT_TRUE(payload.has_value());
    internal::BadRequest detail;
    ASSERT_TRUE(detail.ParseFromString(std::string(*payload)));
    ASSERT_EQ(detail.field_violations_size(), 1);
    EXPECT_EQ(detail.field_violations(0).field(), refusal.field);
  }
}

TEST(RequestCodecTest, SamplingFieldsOutOfRange) {
  const auto set = [](auto setter, float value) {
    return [=](v1::GenerateRequest* r) { (r->mutable_sampling()->*setter)(value); };
  };
  using S = v1::SamplingParameters;
  ExpectRefused({
      {set(&S::set_temperature, -0.5f), "sampling.temperature", "-0.5", "[0, 10]"},
      {set(&S::set_temperature, 10.5f), "sampling.temperature", "10.5", "[0, 10]"},
      {set(&S::set_temperature, kNan), "sampling.temperature", "nan", "[0, 10]"},
      {set(&S::set_temperature, kInfinity), "sampling.temperature", "inf", "[0, 10]"},
      {set(&S::set_top_p, 0.0f), "sampling.top_p", "0", "(0, 1]"},
      {set(&S::set_top_p, -1.0f), "sampling.top_p", "-1", "(0, 1]"},
      {set(&S::set_top_p, 1.5f), "sampling.top_p", "1.5", "(0, 1]"},
      {set(&S::set_top_p, kNan), "sampling.top_p", "nan", "(0, 1]"},
      {set(&S::set_min_p, -0.25f), "sampling.min_p", "-0.25", "[0, 1)"},
      {set(&S::set_min_p, 1.0f), "sampling.min_p", "1", "[0, 1)"},
      {set(&S::set_min_p, kNan), "sampling.min_p", "nan", "[0, 1)"},
      {set(&S::set_repetition_penalty, 0.0f), "sampling.repetition_penalty", "0", "(0, 10]"},
      {set(&S::set_repetition_penalty, kNan), "sampling.repetition_penalty", "nan", "(0, 10]"},
      {set(&S::set_presence_penalty, 2.5f), "sampling.presence_penalty", "2.5", "[-2, 2]"},
      {set(&S::set_presence_penalty, kNan), "sampling.presence_penalty", "nan", "[-2, 2]"},
      {set(&S::set_frequency_penalty, -2.5f), "sampling.frequency_penalty", "-2.5", "[-2, 2]"},
      {set(&S::set_frequency_penalty, kNan), "sampling.frequency_penalty", "nan", "[-2, 2]"},
  });
}

TEST(RequestCodecTest, LogitBias) {
  const auto bias = [](int32_t id, float value) {
    return
        [=](v1::GenerateRequest* r) { (*r->mutable_sampling()->mutable_logit_bias())[id] = value; };
  };
  ExpectRefused({
      {bias(1000, 0), "sampling.logit_bias key", "1000", "[0, 1000)"},
      {bias(-1, 0), "sampling.logit_bias key", "-1", "[0, 1000)"},
      {bias(7, 100.5f), "sampling.logit_bias[7]", "100.5", "[-100, 100]"},
      {bias(7, kNan), "sampling.logit_bias[7]", "nan", "[-100, 100]"},
      {[&](v1::GenerateRequest* r) {
         for (int32_t id = 0; id < 301; ++id) bias(id, 0)(r);
       },
       "sampling.logit_bias", "301", "300"},
  });
}

TEST(RequestCodecTest, StoppingFieldsOutOfRange) {
  const auto stop = [](std::string text) {
    return [=](v1::GenerateRequest* r) { r->mutable_stopping()->add_stop_strings(text); };
  };
  ExpectRefused({
      {stop(""), "stopping.stop_strings[0]", "0 bytes", "1 to 256"},
      {stop(std::string(257, 'x')), "stopping.stop_strings[0]", "257 bytes", "1 to 256"},
      {[&](v1::GenerateRequest* r) {
         for (int i = 0; i < 17; ++i) stop("x")(r);
       },
       "stopping.stop_strings", "17", "16"},
      {[](v1::GenerateRequest* r) { r->mutable_stopping()->add_stop_token_ids(1000); },
       "stopping.stop_token_ids[0]", "1000", "[0, 1000)"},
      {[](v1::GenerateRequest* r) { r->mutable_stopping()->add_stop_token_ids(-3); },
       "stopping.stop_token_ids[0]", "-3", "[0, 1000)"},
      {[](v1::GenerateRequest* r) {
         for (int i = 0; i < 65; ++i) r->mutable_stopping()->add_stop_token_ids(i);
       },
       "stopping.stop_token_ids", "65", "64"},
      {[](v1::GenerateRequest* r) { r->mutable_stopping()->set_min_new_tokens(65); },
       "stopping.min_new_tokens", "65", "64"},
      {[](v1::GenerateRequest* r) {
         r->mutable_stopping()->set_min_new_tokens(9);
         r->mutable_stopping()->set_max_new_tokens(8);
       },
       "stopping.min_new_tokens", "9", "8"},
  });
}

TEST(RequestCodecTest, PromptAndOptionsOutOfRange) {
  ExpectRefused({
      {[](v1::GenerateRequest* r) { r->clear_prompt(); }, "prompt", "missing", "text or token_ids"},
      {[](v1::GenerateRequest* r) { r->set_text(std::string(64 * 32 + 1, 'x')); }, "text",
       "2049 bytes", "2048"},
      {[](v1::GenerateRequest* r) {
         r->mutable_token_ids()->add_ids(1);
         r->mutable_token_ids()->add_ids(1000);
       },
       "token_ids.ids[1]", "1000", "[0, 1000)"},
      {[](v1::GenerateRequest* r) { r->mutable_token_ids()->add_ids(-1); }, "token_ids.ids[0]",
       "-1", "[0, 1000)"},
      {[](v1::GenerateRequest* r) { r->mutable_response()->set_top_logprobs(21); },
       "response.top_logprobs", "21", "20"},
      {[](v1::GenerateRequest* r) { r->set_truncate_prompt_tokens(64); }, "truncate_prompt_tokens",
       "64", "0 to 63"},
      {[](v1::GenerateRequest* r) { r->set_request_id(std::string(129, 'x')); }, "request_id",
       "129", "128"},
      {[](v1::GenerateRequest* r) { r->set_request_id("tab\there"); }, "request_id", "byte 3",
       "printable ASCII"},
      {[](v1::GenerateRequest* r) { r->set_request_id("caf\xC3\xA9"); }, "request_id", "byte 3",
       "printable ASCII"},
  });
}

TEST(RequestCodecTest, AnotherModelIsNotFound) {
  v1::GenerateRequest request = Good();
  request.set_model("other\n");
  const absl::Status status = Decode(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"other\\n\""));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"demo\""));
}

std::vector<TokenId> Ids(int count) {
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) ids.push_back(TokenId{i});
  return ids;
}

TEST(ResolvePromptTest, LengthsAreCheckedAgainstTheContext) {
  GenerateSpec spec;
  EXPECT_EQ(ResolvePrompt(Model(), spec, Ids(63))->tokens.size(), 63u);
  const absl::Status empty = ResolvePrompt(Model(), spec, {}).status();
  EXPECT_EQ(empty.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(empty.message()), HasSubstr("0 tokens"));
  const absl::Status full = ResolvePrompt(Model(), spec, Ids(64)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(full.message()), HasSubstr("prompt of 64 tokens; the context has 64"));
}

TEST(ResolvePromptTest, CutsOnlyWhenAskedAndKeepsTheEnd) {
  GenerateSpec spec;
  spec.truncate_prompt_tokens = 10;
  const auto cut = ResolvePrompt(Model(), spec, Ids(100));
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->tokens.size(), 10u);
  EXPECT_EQ(cut->tokens.front(), TokenId{90});
  EXPECT_EQ(cut->truncated_tokens, 90);
  const auto whole = ResolvePrompt(Model(), spec, Ids(10));
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->truncated_tokens, 0);
}

TEST(MakeRequestTest, LimitsEndAtTheContext) {
  GenerateSpec spec;
  spec.max_new_tokens = 100;
  auto request =
      MakeRequest(Model(), spec, Ids(60), RequestId{1}, absl::UnixEpoch(), absl::InfiniteFuture());
  ASSERT_TRUE(request.ok());
  EXPECT_EQ((*request)->max_new_tokens, 4);
  spec.max_new_tokens = 0;
  request =
      MakeRequest(Model(), spec, Ids(10), RequestId{1}, absl::UnixEpoch(), absl::InfiniteFuture());
  EXPECT_EQ((*request)->max_new_tokens, 16) << "the server's default";
  spec.output.min_new_tokens = 20;
  request =
      MakeRequest(Model(), spec, Ids(10), RequestId{1}, absl::UnixEpoch(), absl::InfiniteFuture());
  EXPECT_EQ((*request)->max_new_tokens, 20) << "never below what was asked for at least";
  const absl::Status room =
      MakeRequest(Model(), spec, Ids(60), RequestId{1}, absl::UnixEpoch(), absl::InfiniteFuture())
          .status();
  EXPECT_EQ(room.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(room.message()), HasSubstr("is 20; the prompt of 60 tokens leaves 4"));
}

TEST(MakeRequestTest, EndOfTextIsAStopUnlessIgnored) {
  GenerateSpec spec;
  spec.output.stop_token_ids = {TokenId{9}};
  spec.time_limit = absl::Seconds(2);
  const absl::Time now = absl::UnixEpoch();
  auto request = MakeRequest(Model(), spec, Ids(1), RequestId{5}, now, now + absl::Seconds(1));
  ASSERT_TRUE(request.ok());
  EXPECT_THAT((*request)->stop_token_ids, ElementsAre(TokenId{9}, TokenId{2}));
  EXPECT_EQ((*request)->deadline, now + absl::Seconds(1));
  EXPECT_EQ((*request)->time_limit, now + absl::Seconds(2));
  spec.ignore_eos = true;
  request = MakeRequest(Model(), spec, Ids(1), RequestId{5}, now, now);
  EXPECT_THAT((*request)->stop_token_ids, ElementsAre(TokenId{9}));
}

grpc::ByteBuffer Wire(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

TEST(ParseMessageTest, RoundTrip) {
  v1::GenerateRequest request = Good();
  request.mutable_stopping()->add_stop_strings("stop");
  grpc::ByteBuffer wire;
  SerializeMessage(request, &wire);
  v1::GenerateRequest parsed;
  ASSERT_TRUE(ParseMessage(wire, &parsed).ok());
  EXPECT_EQ(parsed.SerializeAsString(), request.SerializeAsString());
  EXPECT_TRUE(ParseMessage(Wire(""), &parsed).ok()) << "an empty message is one";
}

TEST(ParseMessageTest, InvalidUtf8IsNamedWithItsPlace) {
  v1::GenerateRequest request;
  request.set_text("abc\xFFz");
  grpc::ByteBuffer wire;
  SerializeMessage(request, &wire);
  v1::GenerateRequest parsed;
  const absl::Status text = ParseMessage(wire, &parsed);
  EXPECT_EQ(text.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(text.message()), "text is not valid UTF-8 at byte 3 of 5");

  request.set_text("fine");
  request.mutable_stopping()->add_stop_strings("\xE2\x82");
  SerializeMessage(request, &wire);
  const absl::Status nested = ParseMessage(wire, &parsed);
  EXPECT_EQ(std::string(nested.message()),
            "stopping.stop_strings is not valid UTF-8 at byte 0 of 2");
}

TEST(ParseMessageTest, OtherBytesAreNoMessage) {
  v1::GenerateRequest parsed;
  const absl::Status status = ParseMessage(Wire("\x0A\x7F"), &parsed);  // promises 127 bytes
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 bytes is not a GenerateRequest"));
}

TEST(OtherRequestsTest, AreValidated) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text(std::string((4 << 20) + 1, 'x'));
  EXPECT_THAT(std::string(ValidateTokenizeText(tokenize).message()), HasSubstr("4194304"));
  v1::DetokenizeRequest detokenize;
  detokenize.add_ids(1000);
  EXPECT_THAT(std::string(DecodeTokenIds(Model(), detokenize).status().message()),
              HasSubstr("ids[0] is 1000"));
  EXPECT_EQ(ValidateAbort(v1::AbortRequest()).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fewbit
