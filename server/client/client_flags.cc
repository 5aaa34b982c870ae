#include "server/client/client_flags.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/build_info.h"
#include "server/flag_help.h"

using Strings = std::vector<std::string>;

ABSL_FLAG(std::string, address, fewbit::client::ClientOptions().address, "host:port of the server");
ABSL_FLAG(double, timeout, 0.0,
          "seconds until the call fails, sent to the server as its deadline; 0: none");
ABSL_FLAG(double, wait_ready, 0.0,
          "wait up to this many seconds until the server reports that it is ready");

ABSL_FLAG(std::string, tls_ca, "",
          "PEM file with the CA of the server's certificate: speak TLS; for public CAs "
          "/etc/ssl/certs/ca-certificates.crt");
ABSL_FLAG(std::string, tls_name, "",
          "name the server's certificate must have; default: the host of --address");
ABSL_FLAG(std::string, tls_cert, "", "PEM file with a certificate to show to the server");
ABSL_FLAG(std::string, tls_key, "", "PEM file with the key of --tls_cert");
ABSL_FLAG(std::string, api_key_file, "", "file with the API key to send");
ABSL_FLAG(std::string, tenant, "",
          "whom the server's metrics count the requests for, where no API key says it");

ABSL_FLAG(Strings, prompt_ids, {}, "prompt as token ids: 1,415,83");
ABSL_FLAG(std::string, model, "", "name of the model; the server refuses any other than its own");
ABSL_FLAG(std::string, request_id, "", "name of the request, for --abort and the server's log");
ABSL_FLAG(std::optional<uint32_t>, truncate_prompt_tokens, std::nullopt,
          "cut a prompt that is too long to its last N tokens instead of failing");

ABSL_FLAG(std::optional<float>, temperature, std::nullopt,
          "0 is greedy; unset: the model's default, else 1");
ABSL_FLAG(std::optional<uint32_t>, top_k, std::nullopt,
          "draw from the K most likely tokens; 0: all");
ABSL_FLAG(std::optional<float>, top_p, std::nullopt,
          "draw from the most likely tokens that together reach P; 1: all");
ABSL_FLAG(std::optional<float>, min_p, std::nullopt,
          "draw from tokens at least P times as likely as the likeliest");
ABSL_FLAG(std::optional<float>, repetition_penalty, std::nullopt,
          "above 1: less of what prompt and output have already");
ABSL_FLAG(std::optional<float>, presence_penalty, std::nullopt,
          "above 0: less of what the output has");
ABSL_FLAG(std::optional<float>, frequency_penalty, std::nullopt,
          "above 0: less of it the more often it has it");
ABSL_FLAG(std::optional<uint64_t>, seed, std::nullopt,
          "the same seed draws the same tokens; unset: drawn and reported");
ABSL_FLAG(Strings, logit_bias, {}, "added to the logits of single tokens: 415:-100,83:2.5");

ABSL_FLAG(std::optional<uint32_t>, max_new_tokens, std::nullopt,
          "tokens to generate at most; unset: the server's default");
ABSL_FLAG(std::optional<uint32_t>, min_new_tokens, std::nullopt,
          "do not stop before this many tokens");
ABSL_FLAG(
    std::string, stop, "",
    "end before this text; may be repeated, or a list: one,two (\\, is a comma, \\n a newline)");
ABSL_FLAG(Strings, stop_token_ids, {}, "end with one of these token ids");
ABSL_FLAG(bool, ignore_eos, false, "do not stop at the model's end-of-text tokens");
ABSL_FLAG(bool, include_stop_string, false, "keep the matched stop string in the text");
ABSL_FLAG(std::optional<uint32_t>, time_limit_ms, std::nullopt,
          "end with what there is after this many milliseconds");

ABSL_FLAG(bool, echo, false, "repeat the prompt in front of the text");
ABSL_FLAG(bool, logprobs, false, "print log-probability and rank of every generated token");
ABSL_FLAG(std::optional<uint32_t>, top_logprobs, std::nullopt,
          "also the N most likely alternatives, at most 20");
ABSL_FLAG(bool, prompt_logprobs, false, "the same for the prompt's tokens");
ABSL_FLAG(bool, stream, true, "print tokens as they come; --nostream: all at the end, by Generate");
ABSL_FLAG(bool, json, false, "print every message as one line of JSON");
ABSL_FLAG(bool, quiet, false, "no usage and timing at the end");

ABSL_FLAG(bool, info, false, "print what the server serves");
ABSL_FLAG(bool, tokenize, false, "print the tokens of the prompt");
ABSL_FLAG(Strings, detokenize, {}, "print the text of these token ids");
ABSL_FLAG(std::string, abort, "", "end the running request of this name");

ABSL_FLAG(bool, health, false,
          "only ask whether the server is ready, for probes: exit status 0 if it is, or becomes so "
          "within --wait_ready seconds, by default 1");

ABSL_FLAG(int32_t, concurrency, 0, "send load: this many streams at a time");
ABSL_FLAG(int32_t, requests, fewbit::client::LoadOptions().requests, "requests to measure");
ABSL_FLAG(int32_t, warmup, fewbit::client::LoadOptions().warmup, "requests before, not measured");
ABSL_FLAG(double, rate, 0.0,
          "requests per second at random (Poisson) times, at most --concurrency at a time; 0: each "
          "stream sends the next one when its last has ended");
ABSL_FLAG(int32_t, prompt_tokens, 0,
          "random prompts of this many tokens, all different; 0: the prompt given");
ABSL_FLAG(int32_t, connections, fewbit::client::LoadOptions().connections,
          "connections for the streams");

namespace fewbit::client {
namespace {

std::vector<FlagGroup> Groups() {
  return {
      {"Server",
       {"address", "timeout", "wait_ready", "tls_ca", "tls_name", "tls_cert", "tls_key",
        "api_key_file", "tenant"}},
      {"Prompt", {"prompt_ids", "model", "request_id", "truncate_prompt_tokens"}},
      {"Sampling",
       {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed", "logit_bias"}},
      {"Stopping",
       {"max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "ignore_eos",
        "include_stop_string", "time_limit_ms"}},
      {"Answer",
       {"echo", "logprobs", "top_logprobs", "prompt_logprobs", "stream", "json", "quiet"}},
      {"Instead of generating", {"info", "tokenize", "detokenize", "abort", "health"}},
      {"Load", {"concurrency", "requests", "warmup", "rate", "prompt_tokens", "connections"}},
  };
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const char* flag, const Strings& words) {
  std::vector<int32_t> ids;
  for (const std::string& word : words) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", word, "' is not a token id"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status ParseBiases(const Strings& words, v1::SamplingParameters* sampling) {
  for (const std::string& word : words) {
    const std::vector<std::string> parts = absl::StrSplit(word, ':');
    int32_t id = 0;
    float bias = 0.0f;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) ||
        !absl::SimpleAtof(parts[1], &bias)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--logit_bias: '", word, "' is not ID:BIAS, as in 415:-100"));
    }
    (*sampling->mutable_logit_bias())[id] = bias;
  }
  return absl::OkStatus();
}

absl::Status FillSampling(v1::SamplingParameters* sampling) {
  if (const auto v = absl::GetFlag(FLAGS_temperature)) sampling->set_temperature(*v);
  if (const auto v = absl::GetFlag(FLAGS_top_k)) sampling->set_top_k(*v);
  if (const auto v = absl::GetFlag(FLAGS_top_p)) sampling->set_top_p(*v);
  if (const auto v = absl::GetFlag(FLAGS_min_p)) sampling->set_min_p(*v);
  if (const auto v = absl::GetFlag(FLAGS_repetition_penalty)) {
    sampling->set_repetition_penalty(*v);
  }
  if (const auto v = absl::GetFlag(FLAGS_presence_penalty)) sampling->set_presence_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_frequency_penalty)) sampling->set_frequency_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_seed)) sampling->set_seed(*v);
  return ParseBiases(absl::GetFlag(FLAGS_logit_bias), sampling);
}

absl::Status FillStopping(v1::StoppingParameters* stopping) {
  if (const auto v = absl::GetFlag(FLAGS_max_new_tokens)) stopping->set_max_new_tokens(*v);
  if (const auto v = absl::GetFlag(FLAGS_min_new_tokens)) stopping->set_min_new_tokens(*v);
  if (const auto v = absl::GetFlag(FLAGS_time_limit_ms)) stopping->set_time_limit_ms(*v);
  for (const std::string& stop : SplitStops(absl::GetFlag(FLAGS_stop))) {
    stopping->add_stop_strings(stop);
  }
  stopping->set_ignore_eos(absl::GetFlag(FLAGS_ignore_eos));
  stopping->set_include_stop_string(absl::GetFlag(FLAGS_include_stop_string));
  const auto ids = ParseIds("stop_token_ids", absl::GetFlag(FLAGS_stop_token_ids));
  if (!ids.ok()) return ids.status();
  stopping->mutable_stop_token_ids()->Add(ids->begin(), ids->end());
  return absl::OkStatus();
}

void FillResponse(v1::ResponseOptions* response) {
  response->set_echo(absl::GetFlag(FLAGS_echo));
  response->set_logprobs(absl::GetFlag(FLAGS_logprobs));
  response->set_prompt_logprobs(absl::GetFlag(FLAGS_prompt_logprobs));
  if (const auto v = absl::GetFlag(FLAGS_top_logprobs)) response->set_top_logprobs(*v);
}

// All of the file that the flag names; empty if it names none.
absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file || content.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, "=", path, " cannot be read or is empty"));
  }
  return content;
}

absl::Status FillSecurity(ClientOptions* options) {
  const struct {
    const char* flag;
    std::string path;
    std::string* content;
  } files[] = {
      {"tls_ca", absl::GetFlag(FLAGS_tls_ca), &options->tls.ca},
      {"tls_cert", absl::GetFlag(FLAGS_tls_cert), &options->tls.certificate},
      {"tls_key", absl::GetFlag(FLAGS_tls_key), &options->tls.key},
      {"api_key_file", absl::GetFlag(FLAGS_api_key_file), &options->api_key},
  };
  for (const auto& file : files) {
    absl::StatusOr<std::string> content = ReadFile(file.flag, file.path);
    if (!content.ok()) return content.status();
    *file.content = *std::move(content);
  }
  absl::StripAsciiWhitespace(&options->api_key);
  for (const char c : options->api_key) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--api_key_file=", files[3].path, " is not one key on one line"));
    }
  }
  options->tenant = absl::GetFlag(FLAGS_tenant);
  for (const char c : options->tenant) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tenant=", options->tenant, " has more than letters, digits and signs"));
    }
  }
  options->tls.server_name = absl::GetFlag(FLAGS_tls_name);
  const bool complete = options->tls.certificate.empty() == options->tls.key.empty();
  const bool plain = options->tls.ca.empty();
  if (!complete || (plain && !(options->tls.key + options->tls.server_name).empty())) {
    return absl::InvalidArgumentError(
        "--tls_cert and --tls_key go together, and they and --tls_name need --tls_ca");
  }
  return absl::OkStatus();
}

absl::Status FillLoad(LoadOptions* load) {
  load->concurrency = absl::GetFlag(FLAGS_concurrency);
  load->requests = absl::GetFlag(FLAGS_requests);
  load->warmup = absl::GetFlag(FLAGS_warmup);
  load->rate = absl::GetFlag(FLAGS_rate);
  load->prompt_tokens = absl::GetFlag(FLAGS_prompt_tokens);
  load->connections = absl::GetFlag(FLAGS_connections);
  const auto check = [](const char* flag, double value, double low, double high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, " is ", value, ", not between ", low, " and ", high));
  };
  for (const absl::Status& status :
       {check("concurrency", load->concurrency, 0, 4096), check("requests", load->requests, 1, 1e7),
        check("warmup", load->warmup, 0, 1e6), check("rate", load->rate, 0, 1e5),
        check("prompt_tokens", load->prompt_tokens, 0, 1e6),
        check("connections", load->connections, 1, 256)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Which of the exclusive modes was asked for.
absl::Status FillMode(ClientOptions* options) {
  using Mode = ClientOptions::Mode;
  options->abort_id = absl::GetFlag(FLAGS_abort);
  std::vector<std::pair<Mode, std::string>> asked;
  if (absl::GetFlag(FLAGS_info)) asked.emplace_back(Mode::kInfo, "--info");
  if (absl::GetFlag(FLAGS_tokenize)) asked.emplace_back(Mode::kTokenize, "--tokenize");
  if (!absl::GetFlag(FLAGS_detokenize).empty()) {
    asked.emplace_back(Mode::kDetokenize, "--detokenize");
  }
  if (!options->abort_id.empty()) asked.emplace_back(Mode::kAbort, "--abort");
  if (absl::GetFlag(FLAGS_health)) asked.emplace_back(Mode::kHealth, "--health");
  if (options->load.concurrency > 0) asked.emplace_back(Mode::kLoad, "--concurrency");
  if (asked.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(asked[0].second, " and ", asked[1].second, " exclude each other"));
  }
  if (!asked.empty()) options->mode = asked[0].first;
  const bool probe = options->mode == Mode::kHealth;
  if (probe && options->wait_ready_seconds == 0) options->wait_ready_seconds = 1;
  return absl::OkStatus();
}

// The prompt from --prompt_ids, the argument or `input`, if the mode wants one.
absl::Status FillPrompt(const std::vector<char*>& arguments, std::istream& input,
                        bool input_is_terminal, ClientOptions* options) {
  using Mode = ClientOptions::Mode;
  const bool has_argument = arguments.size() > 1;
  if (arguments.size() > 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("one prompt, not ", arguments.size() - 1, ": put it in quotes"));
  }
  const Strings& words = options->mode == Mode::kDetokenize ? absl::GetFlag(FLAGS_detokenize)
                                                            : absl::GetFlag(FLAGS_prompt_ids);
  const auto ids =
      ParseIds(options->mode == Mode::kDetokenize ? "detokenize" : "prompt_ids", words);
  if (!ids.ok()) return ids.status();
  const bool wants_prompt = options->mode == Mode::kGenerate || options->mode == Mode::kTokenize ||
                            (options->mode == Mode::kLoad && options->load.prompt_tokens == 0);
  if (!ids->empty()) {
    if (options->mode == Mode::kTokenize) {
      return absl::InvalidArgumentError("--tokenize and --prompt_ids exclude each other");
    }
    if (has_argument)
      return absl::InvalidArgumentError("a prompt and token ids exclude each other");
    options->request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
  } else if (has_argument) {
    if (!wants_prompt) {
      return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", arguments[1], "'"));
    }
    options->request.set_text(arguments[1]);
  } else if (wants_prompt) {
    if (input_is_terminal) {
      return absl::InvalidArgumentError(
          "no prompt: give it as an argument, or through a pipe (see --help)");
    }
    std::string text{std::istreambuf_iterator<char>(input), {}};
    if (text.ends_with('\n')) text.pop_back();
    options->request.set_text(std::move(text));
  }
  return absl::OkStatus();
}

}  // namespace

std::string HelpText() {
  return "fewbit-client: asks a fewbit-server to continue a text, and prints it as it comes.\n\n"
         "  fewbit-client \"Once upon a time\"\n"
         "  fewbit-client --max_new_tokens=50 --temperature=0.7 < prompt.txt\n"
         "  fewbit-client --info\n"
         "  fewbit-client --concurrency=8 --requests=64 --prompt_tokens=128 "
         "--max_new_tokens=128\n" +
         FlagHelp(Groups()) +
         "\nAlso\n  --version                 what this is\n"
         "  --flagfile=FILE           one flag per line\n"
         "\nDefaults are in parentheses. The text goes to standard output and ends with a "
         "newline;\n"
         "usage and timing go to standard error. Ctrl-C cancels the request. Exit status: 0 done,\n"
         "1 the call failed or a flag has no such name or value, 2 the flags do not go together,\n"
         "130 cancelled.\n";
}

std::vector<std::string> SplitStops(std::string_view text) {
  std::vector<std::string> stops;
  std::string stop;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == ',') {
      if (!stop.empty()) stops.push_back(std::exchange(stop, {}));
      continue;
    }
    if (c == '\\' && i + 1 < text.size()) {
      c = text[++i];
      if (c == 'n') c = '\n';
      if (c == 't') c = '\t';
      if (c == 'r') c = '\r';
    }
    stop += c;
  }
  if (!stop.empty()) stops.push_back(stop);
  return stops;
}

std::vector<std::string> JoinStops(int argc, char** argv) {
  std::vector<std::string> rest;
  std::string stops;
  bool any = false;
  int i = 0;
  for (; i < argc && std::string_view(argv[i]) != "--"; ++i) {
    std::string_view argument = argv[i];
    if (argument.starts_with("--")) argument.remove_prefix(1);
    const bool separate = argument == "-stop" && i + 1 < argc;
    if (i == 0 || !(separate || argument.starts_with("-stop="))) {
      rest.emplace_back(argv[i]);
      continue;
    }
    if (any) stops += ',';
    stops += separate ? std::string_view(argv[++i]) : argument.substr(6);
    any = true;
  }
  if (any) rest.insert(rest.begin() + 1, "--stop=" + stops);
  for (; i < argc; ++i) rest.emplace_back(argv[i]);
  return rest;
}

absl::StatusOr<ClientOptions> ParseCommandLine(int argc, char** argv, std::istream& input,
                                               bool input_is_terminal) {
  std::vector<std::string> words = JoinStops(argc, argv);
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  for (size_t i = 1; i < words.size() && words[i] != "--"; ++i) {
    if (words[i] == "--help" || words[i] == "-help" || words[i] == "-h") {
      std::fputs(HelpText().c_str(), stdout);
      std::exit(0);
    }
  }
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return VersionText("fewbit-client"); };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> arguments =
      absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());

  ClientOptions options;
  options.address = absl::GetFlag(FLAGS_address);
  options.timeout_seconds = absl::GetFlag(FLAGS_timeout);
  options.wait_ready_seconds = absl::GetFlag(FLAGS_wait_ready);
  options.stream = absl::GetFlag(FLAGS_stream);
  options.json = absl::GetFlag(FLAGS_json);
  options.quiet = absl::GetFlag(FLAGS_quiet);
  v1::GenerateRequest& request = options.request;
  request.set_model(absl::GetFlag(FLAGS_model));
  request.set_request_id(absl::GetFlag(FLAGS_request_id));
  if (const auto v = absl::GetFlag(FLAGS_truncate_prompt_tokens)) {
    request.set_truncate_prompt_tokens(*v);
  }
  FillResponse(request.mutable_response());
  if (options.timeout_seconds < 0 || options.wait_ready_seconds < 0) {
    return absl::InvalidArgumentError("--timeout and --wait_ready are seconds, 0 or more");
  }
  absl::Status status = FillSecurity(&options);
  if (status.ok()) status = FillSampling(request.mutable_sampling());
  if (status.ok()) status = FillStopping(request.mutable_stopping());
  if (status.ok()) status = FillLoad(&options.load);
  if (status.ok()) status = FillMode(&options);
  if (status.ok()) status = FillPrompt(arguments, input, input_is_terminal, &options);
  if (!status.ok()) return status;
  return options;
}

}  // namespace fewbit::client
