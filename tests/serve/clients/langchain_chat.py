"""Two turns as a whole transcript, the second as a stream too, and two turns of responses. langchain_chat.py URL"""

import json
import sys

from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI

TOLD, ASKED = HumanMessage("Mary went to the kitchen."), HumanMessage("Where is Mary?")
about = dict(base_url=sys.argv[1], api_key="none", model="lm2-tiny", max_retries=0)

chat = ChatOpenAI(**about)
said = [TOLD, AIMessage(chat.invoke([TOLD]).content), ASKED]
out = {"second": chat.invoke(said).content, "streamed": "".join(part.content for part in chat.stream(said))}
responses = ChatOpenAI(**about, use_responses_api=True, use_previous_response_id=True, output_version="responses/v1")
out["response"] = responses.invoke([TOLD, responses.invoke([TOLD]), ASKED]).text
print(json.dumps(out))
