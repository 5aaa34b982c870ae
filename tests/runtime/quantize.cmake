# The quantizer and the evaluation, on tensors and token ids; then their programs.
fewbit_test(quantize_matrix_test SOURCES quantize_matrix_test.cc LIBS fewbit_quantize)
fewbit_test(quantize_hessian_test SOURCES quantize_hessian_test.cc LIBS fewbit_quantize)
fewbit_test(dense_products_test SOURCES dense_products_test.cc LIBS fewbit_products)
fewbit_test(html_page_test SOURCES html_page_test.cc LIBS fewbit_html_page)
fewbit_test(quantize_plan_test SOURCES quantize_plan_test.cc LIBS fewbit_quantize fewbit_checkpoint_files)
fewbit_test(quantize_checkpoint_test SOURCES quantize_checkpoint_test.cc LIBS fewbit_quantize fewbit_eval fewbit_checkpoint_files)
fewbit_test(quantize_resume_test SOURCES quantize_resume_test.cc LIBS fewbit_quantize fewbit_checkpoint_files)
fewbit_test(quantize_report_test SOURCES quantize_report_test.cc LIBS fewbit_quantize fewbit_checkpoint_files)
fewbit_test(eval_test SOURCES eval_test.cc LIBS fewbit_eval fewbit_checkpoint_files)

if(TARGET fewbit-eval)
  add_test(NAME quantize_tools_test COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/quantize_tools_test.sh
    $<TARGET_FILE:fewbit-quantize> $<TARGET_FILE:fewbit-eval> ${CMAKE_SOURCE_DIR})
  set_tests_properties(quantize_tools_test PROPERTIES TIMEOUT 300)
endif()
