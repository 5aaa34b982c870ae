// The protocol against every released version of it (proto/released), and the proof that each kind
// of break is found.
#include "tests/proto/compatibility.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace fewbit::testing {
namespace {

using google::protobuf::DescriptorProto;
using google::protobuf::FieldDescriptorProto;
using google::protobuf::FileDescriptorProto;
using google::protobuf::FileDescriptorSet;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

FileDescriptorSet Read(const std::filesystem::path& path) {
  FileDescriptorSet set;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(set.ParseFromIstream(&file)) << path;
  return set;
}

FileDescriptorSet Current() { return Read(FEWBIT_DESCRIPTOR_SET); }

TEST(CompatibilityTest, ClientsOfEveryReleaseAreUnderstood) {
  int releases = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(FEWBIT_SOURCE_DIR "/proto/released")) {
    if (entry.path().extension() != ".binpb") continue;
    ++releases;
    const FileDescriptorSet before = Read(entry.path());
    EXPECT_GT(before.file_size(), 0) << entry.path();
    EXPECT_THAT(Breaks(before, Current()), IsEmpty()) << entry.path();
  }
  EXPECT_GT(releases, 0);
}

// The protocol with one change; what is found must be exactly that.
std::vector<std::string> BreaksOf(const std::function<void(FileDescriptorProto*)>& change) {
  const FileDescriptorSet before = Current();
  FileDescriptorSet now = before;
  for (FileDescriptorProto& file : *now.mutable_file()) {
    if (file.package() == "fewbit.v1") change(&file);
  }
  EXPECT_NE(before.SerializeAsString(), now.SerializeAsString()) << "nothing was changed";
  return Breaks(before, now);
}

template <typename Items>
auto* Named(Items* items, const std::string& name) {
  for (auto& item : *items) {
    if (item.name() == name) return &item;
  }
  ADD_FAILURE() << name << " is not there";
  return items->Add();
}

template <typename Items>
void Remove(Items* items, const std::string& name) {
  for (int i = 0; i < items->size(); ++i) {
    if (items->Get(i).name() == name) return items->DeleteSubrange(i, 1);
  }
  ADD_FAILURE() << name << " is not there";
}

DescriptorProto* Message(FileDescriptorProto* file, const std::string& name) {
  return Named(file->mutable_message_type(), name);
}

FieldDescriptorProto* Field(FileDescriptorProto* file, const std::string& message,
                            const std::string& field) {
  return Named(Message(file, message)->mutable_field(), field);
}

TEST(CompatibilityTest, AdditionsBreakNothing) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                FieldDescriptorProto* field = Message(file, "GenerateRequest")->add_field();
                field->set_name("added");
                field->set_number(1000);
                field->set_type(FieldDescriptorProto::TYPE_STRING);
                field->set_label(FieldDescriptorProto::LABEL_OPTIONAL);
                file->add_message_type()->set_name("Added");
                auto* value = file->mutable_enum_type(0)->add_value();
                value->set_name("ADDED");
                value->set_number(1000);
                file->mutable_service(0)->add_method()->set_name("Added");
              }),
              IsEmpty());
}

TEST(CompatibilityTest, ARemovedField) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Remove(Message(file, "GenerateRequest")->mutable_field(), "request_id");
              }),
              ElementsAre(::testing::MatchesRegex(
                  "field fewbit.v1.GenerateRequest.request_id = .* is gone")));
}

TEST(CompatibilityTest, ARenumberedField) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Field(file, "GenerateRequest", "request_id")->set_number(1000);
              }),
              ElementsAre(::testing::MatchesRegex(
                  "field fewbit.v1.GenerateRequest.request_id = .* is gone")));
}

TEST(CompatibilityTest, ARenamedField) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Field(file, "GenerateRequest", "request_id")->set_name("id");
              }),
              ElementsAre("fewbit.v1.GenerateRequest.request_id: the name was request_id, is id"));
}

TEST(CompatibilityTest, AnotherType) {
  EXPECT_THAT(
      BreaksOf([](FileDescriptorProto* file) {
        Field(file, "GenerateRequest", "request_id")->set_type(FieldDescriptorProto::TYPE_BYTES);
      }),
      ElementsAre("fewbit.v1.GenerateRequest.request_id: the type was TYPE_STRING, is "
                  "TYPE_BYTES"));
  EXPECT_THAT(
      BreaksOf([](FileDescriptorProto* file) {
        Field(file, "GenerateRequest", "stopping")->set_type_name(".fewbit.v1.SamplingParameters");
      }),
      ::testing::SizeIs(1));
}

TEST(CompatibilityTest, AnotherLabel) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Field(file, "GenerateRequest", "request_id")
                    ->set_label(FieldDescriptorProto::LABEL_REPEATED);
              }),
              ElementsAre("fewbit.v1.GenerateRequest.request_id: the label was LABEL_OPTIONAL, is "
                          "LABEL_REPEATED"));
}

TEST(CompatibilityTest, PresenceAndOneof) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                FieldDescriptorProto* field = Field(file, "SamplingParameters", "temperature");
                field->clear_proto3_optional();
                field->clear_oneof_index();
              }),
              ElementsAre("fewbit.v1.SamplingParameters.temperature: the label was optional, is "
                          "LABEL_OPTIONAL"));
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Field(file, "GenerateRequest", "text")->clear_oneof_index();
              }),
              ElementsAre("fewbit.v1.GenerateRequest.text: the oneof was prompt, is none"));
}

TEST(CompatibilityTest, AReservedNumberInUse) {
  FileDescriptorSet before = Current();
  for (FileDescriptorProto& file : *before.mutable_file()) {
    if (file.package() != "fewbit.v1") continue;
    auto* range = Message(&file, "AbortRequest")->add_reserved_range();
    range->set_start(900);
    range->set_end(902);
  }
  FileDescriptorSet now = before;
  for (FileDescriptorProto& file : *now.mutable_file()) {
    if (file.package() != "fewbit.v1") continue;
    FieldDescriptorProto* field = Message(&file, "AbortRequest")->add_field();
    field->set_name("again");
    field->set_number(901);
  }
  EXPECT_THAT(Breaks(before, now),
              ElementsAre("fewbit.v1.AbortRequest.again uses the reserved 901"));
}

TEST(CompatibilityTest, EnumValues) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                auto* reason = Named(file->mutable_enum_type(), "FinishReason");
                Named(reason->mutable_value(), "FINISH_REASON_DRAINED")->set_number(1000);
              }),
              ElementsAre(::testing::MatchesRegex(
                  "fewbit.v1.FinishReason.FINISH_REASON_DRAINED: the number was .*, is 1000")));
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Remove(Named(file->mutable_enum_type(), "FinishReason")->mutable_value(),
                       "FINISH_REASON_DRAINED");
              }),
              ElementsAre("value fewbit.v1.FinishReason.FINISH_REASON_DRAINED is gone"));
}

TEST(CompatibilityTest, MessagesAndServicesThatAreGone) {
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Remove(file->mutable_message_type(), "AbortResponse");
              }),
              ElementsAre("message fewbit.v1.AbortResponse is gone"));
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) { file->clear_service(); }),
              ElementsAre("service fewbit.v1.GenerationService is gone"));
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) { file->set_package("fewbit.v2"); }),
              ::testing::SizeIs(::testing::Gt(10)));
}

TEST(CompatibilityTest, Methods) {
  const auto method = [](FileDescriptorProto* file, const char* name) {
    return Named(file->mutable_service(0)->mutable_method(), name);
  };
  EXPECT_THAT(BreaksOf([](FileDescriptorProto* file) {
                Remove(file->mutable_service(0)->mutable_method(), "Abort");
              }),
              ElementsAre("method of fewbit.v1.GenerationService Abort is gone"));
  EXPECT_THAT(BreaksOf([&](FileDescriptorProto* file) {
                method(file, "GenerateStream")->set_server_streaming(false);
              }),
              ElementsAre("fewbit.v1.GenerationService.GenerateStream: the response was stream "
                          ".fewbit.v1.GenerateResponse, is .fewbit.v1.GenerateResponse"));
  EXPECT_THAT(BreaksOf([&](FileDescriptorProto* file) {
                method(file, "Tokenize")->set_input_type(".fewbit.v1.DetokenizeRequest");
              }),
              ElementsAre("fewbit.v1.GenerationService.Tokenize: the request was "
                          ".fewbit.v1.TokenizeRequest, is .fewbit.v1.DetokenizeRequest"));
}

}  // namespace
}  // namespace fewbit::testing
