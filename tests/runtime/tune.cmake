# The operators of tuning, a layer's tape and the tuner.
fewbit_test(gradients_test SOURCES ../kernels/gradients_test.cc LIBS fewbit_kernels LABELS kernels)
fewbit_test(tune_ops_test SOURCES tune_ops_test.cc LIBS fewbit_tune LABELS runtime)
add_library(fewbit_tape_runner STATIC double_decoder.cc tape_runner.cc)
target_link_libraries(fewbit_tape_runner PUBLIC fewbit_tune)
fewbit_test(tune_tape_test SOURCES tune_tape_test.cc
  LIBS fewbit_tape_runner fewbit_tune nlohmann_json::nlohmann_json LABELS runtime)
fewbit_test(tune_scales_test SOURCES tune_scales_test.cc ../kernels/random_matrix.cc LIBS fewbit_tune LABELS runtime)
fewbit_test(tune_checkpoint_test SOURCES tune_checkpoint_test.cc
  LIBS fewbit_tune fewbit_quantize fewbit_eval fewbit_checkpoint_files LABELS runtime)
fewbit_test(tune_stages_test SOURCES tune_stages_test.cc LIBS fewbit_tune fewbit_quantize fewbit_html_page fewbit_checkpoint_files LABELS runtime)
if(TARGET fewbit-tune)
  add_test(NAME tune_tools_test COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/tune_tools_test.sh
    $<TARGET_FILE:fewbit-tune> $<TARGET_FILE:fewbit-quantize> $<TARGET_FILE:fewbit-eval> ${CMAKE_SOURCE_DIR})
  set_tests_properties(tune_tools_test PROPERTIES TIMEOUT 300)
endif()
fewbit_test(tune_own_text_test SOURCES tune_own_text_test.cc LIBS fewbit_tune_device fewbit_checkpoint_files LABELS runtime)
