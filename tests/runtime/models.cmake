# Checkpoint readers and writer, config, arch table.
add_library(fewbit_checkpoint_files STATIC checkpoint_files.cc)
target_link_libraries(fewbit_checkpoint_files PUBLIC fewbit_models)
target_compile_definitions(fewbit_checkpoint_files PRIVATE FEWBIT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")

foreach(name canary_test safetensors_test model_config_test checkpoint_test quantized_checkpoint_test)
  fewbit_test(${name} SOURCES ${name}.cc LIBS fewbit_checkpoint_files)
endforeach()
