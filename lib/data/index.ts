// The door of data: text and token files, tokenizers, batches.
export { trainBpe } from "./bpe.ts";
export { type Batch, Dataset, type DatasetOptions, type SampleOrder } from "./dataset.ts";
export { HuggingFaceTokenizer } from "./hf-tokenizer.ts";
export { type DataRequest, openData as open, type TokenData } from "./source.ts";
export { TokenStream } from "./stream.ts";
export { ByteTokenizer, loadTokenizer, type TokenIds, type Tokenizer, type TokenizerChoice } from "./tokenizer.ts";
