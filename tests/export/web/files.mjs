// Session files in the browser's reader: node files.mjs EXPECTED.json FILE...; prints for each what it holds and writes it again as FILE.again, or the error.
import { readFileSync, writeFileSync } from 'node:fs';
import { Noting } from '../../../export/browser/lm2/ledger.js';
import { fromRecord, toRecord } from '../../../export/browser/lm2/keeping.js';
import { readSession, writeSession } from '../../../export/browser/lm2/statefile.js';

const expected = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const [l, , n, d] = expected.bankShape;
for (const path of process.argv.slice(3)) {
  try {
    const record = readSession(new Uint8Array(readFileSync(path)), expected, 'FILE');
    const kept = fromRecord(record, expected, new Noting(l, n, d, expected.eps), 'FILE');
    const again = toRecord(kept, expected, { backend: record.meta.backend, dtype: record.meta.dtype });
    again.meta.updated = record.meta.updated;
    writeFileSync(`${path}.again`, writeSession(again, expected));
    console.log(JSON.stringify({ tokens: record.now.tokens, folds: record.now.folds, carried: record.now.carried, written: record.now.written, snapshots: record.snapshots.length }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.name, message: error.message }));
  }
}
