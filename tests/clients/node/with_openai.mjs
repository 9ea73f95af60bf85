// openai: https://github.com/openai/openai-node#usage
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { KEY, MODEL, QUESTION, run } from "./cases.mjs";

const messages = [{ role: "user", content: QUESTION }];
const Event = z.object({ name: z.string(), date: z.string() });
const client = (url) => new OpenAI({ baseURL: url, apiKey: KEY, maxRetries: 0 });

await run({
  async chat(url) {
    const answer = await client(url).chat.completions.create({ model: MODEL, messages });
    assert(answer.choices[0].message.content);
  },
  async stream(url) {
    let text = "";
    const chunks = await client(url).chat.completions.create({ model: MODEL, messages, stream: true });
    for await (const chunk of chunks) text += chunk.choices[0]?.delta?.content ?? "";
    assert(text);
  },
  async parse(url) {
    const answer = await client(url).chat.completions.parse({
      model: MODEL,
      messages,
      response_format: zodResponseFormat(Event, "event"),
    });
    Event.parse(answer.choices[0].message.parsed);
  },
  async runTools(url) {
    const cities = [];
    const runner = client(url).chat.completions.runTools({
      model: MODEL,
      messages,
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "The weather in a city",
            parse: JSON.parse,
            function: ({ city }) => (cities.push(city), "sunny"),
            parameters: {
              type: "object",
              properties: { city: { type: "string", maxLength: 8 } },
              required: ["city"],
            },
          },
        },
      ],
    });
    assert(await runner.finalContent());
    assert.equal(cities.length, 1);
  },
  async responses(url) {
    const answer = await client(url).responses.create({ model: MODEL, input: QUESTION });
    assert(answer.output_text);
  },
});
