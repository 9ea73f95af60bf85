// A whole chat and a streamed one at each base URL, by OpenAI's official client for Node.
// Usage: node openai_node.mjs URL...; run where node_modules has the package. Prints JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(`${process.cwd()}/`).resolve("openai");
const { OpenAI } = await import(pathToFileURL(found).href);
const asked = { model: "tiny", messages: [{ role: "user", content: "hi" }], temperature: 0 };

async function told(url) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const whole = client.chat.completions.create(asked);
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
  }
  return { whole: (await whole).choices[0].message.content, streamed };
}

const outcomes = await Promise.allSettled(process.argv.slice(2).map(told));
console.log(JSON.stringify(outcomes.map((o) => o.value ?? { error: String(o.reason) })));
